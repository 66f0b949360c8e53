"""Files in and out: checkpoints, weights of other formats, video files and pictures.

Import the module you need (``vidlatent.io.checkpoint``, ``vidlatent.io.video``, ...): this package
loads nothing by itself, so that writing a picture does not need a checkpoint library.
"""
