"""``config.checkpoint``: when to save, what to keep, how to check it."""

from ml_collections import ConfigDict


def get_checkpoint() -> ConfigDict:
    checkpoint = ConfigDict()
    checkpoint.every = 1000  # steps between checkpoints
    checkpoint.keep_latest = 2  # newest checkpoints kept
    checkpoint.keep_every = 0  # also keep multiples of this step for good; 0: none
    checkpoint.keep_best = 1  # best checkpoints kept
    checkpoint.best_metric = "psnr"  # validation score that decides which is best
    checkpoint.best_mode = "max"  # max | min
    checkpoint.verify = "auto"  # digests compared on restore: off | sample | full | auto
    return checkpoint
