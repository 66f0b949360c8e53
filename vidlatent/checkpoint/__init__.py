"""Training checkpoints: Orbax steps with digests, and how state is laid out in them."""
