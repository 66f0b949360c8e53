"""``config.distill``: what a few-step generator learns from its teacher (FSVideo 2.4.3).

The paper names the three stages and the numbers of steps; the other values are our choices.
"""

from ml_collections import ConfigDict


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
    return distill
