"""Using trained models: coding, scoring and showing."""
