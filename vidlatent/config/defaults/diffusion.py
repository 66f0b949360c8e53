"""``config.diffusion`` (generators): noise schedule and loss of the training."""

from ml_collections import ConfigDict


def get_diffusion() -> ConfigDict:
    diffusion = ConfigDict()
    diffusion.schedule = ConfigDict()  # name of diffusion.SCHEDULES and its options
    # What flow matching's pseudo-Huber loss takes the root over: sample | token | element
    diffusion.huber_reduction = "sample"
    diffusion.huber_c0 = 0.00054  # width of its quadratic part (Song and Dhariwal 2023)
    diffusion.eval_levels = 8  # noise levels at which validation clips are scored
    return diffusion
