"""The mode ``plan``: memory, operations and time of a job on hardware that is not at hand."""
