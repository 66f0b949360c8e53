"""``config.distill``: what a few-step generator learns from its teacher (FSVideo 2.4.3).

The paper names the three stages and the numbers of steps; the other values are our choices.
``config.distill.optim`` is the fake score's of distill_score; its adapters, if their rank is not 0,
are on the frozen teacher. The student's is ``config.optim``.
"""

import math

from ml_collections import ConfigDict

from vidlatent.config.defaults.optim import get_lora, get_optim


def get_distill() -> ConfigDict:
    distill = ConfigDict()
    # Workdir of the trained generator or refiner that is distilled; empty: config.train.init_from.
    # The one that is given stands for both
    distill.teacher = ""
    distill.teacher_step = -1  # its checkpoint; -1: the newest
    # Of distill_guidance: the guidance scale of each link (config.sampler.guidance), which becomes
    # part of the student; empty, for the other tasks: the teacher as it is
    distill.scales = ()
    # For each link, the conditions that its less conditioned side leaves out; empty: all of them
    distill.drops = ()
    # What a scale w means: null (null + w (condition - null), so that 1 is no guidance) |
    # condition (condition + w (condition - null), so that 0 is none)
    distill.convention = "null"
    # (least, greatest) scale in place of distill.scales: one is drawn for each sample and told to
    # the student, which needs config.generator.guidance_embed; later any between them can be used
    distill.scale_range = ()
    distill.batched = True  # evaluate the teacher's sides in one batch; False: in turn
    # Of distill_progressive: steps of the student in each stage of the run, each half of those
    # before; the teacher of the first takes twice as many. Stages share train.steps evenly
    distill.stages = ()
    # What is squared where the network predicts no velocity: output (of the network, as in its
    # training) | truncated_snr (the greater of the errors of clean sample and noise, as published)
    distill.weighting = "output"
    # Halve the steps of a teacher that is usually sampled with guidance, without that guidance
    distill.unguided = False
    distill.score = get_score()
    distill.optim = get_optim()
    distill.optim.lora = get_lora()
    return distill


def get_score() -> ConfigDict:
    """Of distill_score: a few-step generator learns by the scores of two networks.

    The teacher has seen the data, the fake score learns from the generator's samples, and the
    generator moves to where they agree. The student's steps are those of ``config.sampler``. Values
    are those of the published code for flow matching (Zhou et al. 2025) unless a comment says
    otherwise.
    """
    score = ConfigDict()
    # sida (score identity distillation, and its adversarial form) | dmd (distribution matching,
    # DMD2): the generator's loss. sida sums over a sample's values, dmd takes means
    score.kind = "sida"
    score.alpha = 1.0  # of sida; published range 0.5 to 1.2
    score.weighting = "one_minus_sigma"  # of sida: one_minus_sigma | inverse_error
    score.score_weight = 1.0  # of the loss that compares the two scores
    # Of the adversarial loss in the generator's loss (0.01: 1 to 100, as published). The
    # discriminator is the fake score's own trunk. It helps if the data are better than the
    # generator's samples, its author says
    score.adversarial_weight = 0.01
    # Of the discriminator's loss in the fake score's; both 0: no adversary
    score.discriminator_weight = 1.0
    # Logits are means of the tokens before the head: tokens (over them) | channels (over those)
    score.pooling = "tokens"
    # Updates of the fake score for each of the generator's; a step of the run is one update
    score.fake_updates = 1
    score.generator_after = 20_000  # samples the fake score learns from before the generator moves
    score.adversarial_after = 40_000  # and before the adversarial losses count
    # Noise levels at which scores are compared and the fake score learns: logit_normal | uniform
    # (and then shifted like the sampler's)
    score.levels = "logit_normal"
    score.level_mean = math.log(2.0)  # of the logit of logit_normal levels
    score.level_std = 1.6  # of the same
    score.level_range = (0.02, 0.98)  # least and greatest of uniform levels, before the shift
    # Each value of a gradient is cut to this size; 0: not at all. Earlier code has 1. NaN counts as
    # 0 and infinity as 1e5 in any case
    score.clip_value = 0.0
    return score
