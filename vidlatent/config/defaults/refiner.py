"""``config.refiner``: what FSVideo's refiner is given in training and sampling (2.4.2).

The paper states the rate and the odds of the shuffle; the other values are our choices.
"""

from ml_collections import ConfigDict


def get_refiner() -> ConfigDict:
    refiner = ConfigDict()
    refiner.base = ""  # workdir of the base model, frozen
    refiner.base_step = -1  # its checkpoint; -1: the newest
    refiner.upsampler = ""  # workdir of the latent upsampler, frozen
    refiner.upsampler_step = -1  # its checkpoint; -1: the newest
    # The mask of upsampled frames: confidence (falls with the upsampler's error on the first frame)
    # | error (rises with it)
    refiner.mask_mode = "confidence"
    refiner.mask_map = "spatial"  # spatial: a value for each place | sample: one for each sample
    refiner.mask_low = 0.2  # least value of the mask
    refiner.mask_high = 0.8  # greatest value, below the 1 of real frames
    refiner.mask_tau = 0.5  # the error at which confidence has fallen to 1 / e
    refiner.shuffle_rate = 0.5  # share of samples whose small frames are shuffled (stated)
    # Odds of the kinds of shuffle: a window of neighbours, two that are no neighbours, all (stated)
    refiner.shuffle_odds = (6.0, 3.0, 1.0)
    refiner.shuffle_window = (2, 4)  # least and most frames of such a window
    refiner.real_rate = 0.2  # share of samples in which some later frames show the truth
    refiner.low_drop = 0.1  # share of samples without the small video; the picture stays
    refiner.least_sigma = 0.1  # least noise level at which the base model is evaluated
    return refiner
