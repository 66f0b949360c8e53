"""FSVideo's latent upsampler: twice the height and width of a latent, the same frames (2.4.1)."""
