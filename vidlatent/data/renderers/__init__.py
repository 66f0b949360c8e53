"""Videos that are drawn rather than read, for demos and tests."""
