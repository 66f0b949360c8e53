"""The mode ``convert``: weights of other code to workdirs or files, and back."""
