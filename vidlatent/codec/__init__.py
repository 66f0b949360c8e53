"""Videos of any length and size to latents and back; the modes ``reconstruct`` and ``preview``."""
