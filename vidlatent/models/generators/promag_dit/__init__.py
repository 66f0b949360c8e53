"""ProMAG's text-to-video transformer (the CogVideoX layout)."""
