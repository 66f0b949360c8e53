"""Starting runs on one machine or on clusters; nothing in ``vidlatent`` imports it."""
