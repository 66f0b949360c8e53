"""The mode ``encode``: a data set of videos to a data set of latents."""
