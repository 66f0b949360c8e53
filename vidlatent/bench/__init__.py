"""The mode ``bench``: how fast a config's programs run on the devices at hand."""
