"""Training: one state, one loop, and a step for each kind of model."""
