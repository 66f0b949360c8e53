"""``config.refl``: fine-tuning by gradients of rewards, ReFL (task ``refl``); the rewards are
``config.rewards.use``.

FSVideo states the method, the rewards, the 61 frames and the ten lowest of them (2.4.3);
ImageReward the hinge and the scale. The other values are our choices. ``config.rl`` has what policy
updates share with it: ``frames``, ``start_seed``, ``decode_groups`` of the evaluation, ``watch``,
``stop_fall`` and ``stop_after``.
"""

from ml_collections import ConfigDict


def get_refl() -> ConfigDict:
    refl = ConfigDict()
    # First and last of the sampler's steps, counted from 0, at which the gradient is taken; one of
    # them is drawn for each update, and the steps before it have no gradient
    refl.steps = (20, 28)
    # Latent frames that are decoded and judged, from the first one on: 16 are 61 frames of FSAE. 0:
    # all that are drawn
    refl.latents = 16
    # A score above its margin has no gradient: relu(margin - score), of a reward of frames for each
    # frame that counts
    refl.margin = 2.0
    # (score, margin) pairs of scores that have another one, such as (("mps", 1.5),)
    refl.margins = ()
    # (score, mean, deviation), by which a score is standardised before its margin is taken off:
    # those of the start's samples, which rewards.json has. A score that is not named stays as it is
    refl.standards = ()
    refl.scale = 1e-3  # of the rewards' part of the loss
    refl.flow_weight = 0.1  # of the usual loss on the clips' latents; 0: without
    # Divide the rewards' part by the guidance scale, by which guidance multiplies its gradient
    refl.divide_by_guidance = False
    # Decoder and rewards go backward chunk by chunk, each recomputed: the memory of one chunk
    refl.stream = True
    # Groups of frames in a chunk of the decoder, if it can go on from piece to piece
    refl.groups = 1
    return refl
