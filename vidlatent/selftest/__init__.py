"""``python -m vidlatent.selftest``: closed-form checks on the devices at hand, in two minutes."""
