"""``config.rl``: policy updates by rewards, MixGRPO (task ``grpo``); the rewards are
``config.rewards.use``. The task ``refl`` (``config.refl``) reads the last part of it.

Values follow MixGRPO's code, and for 8 steps our choices; FSVideo states the method alone (2.4.3).
"""

from ml_collections import ConfigDict


def get_rl() -> ConfigDict:
    rl = ConfigDict()
    # Samples of each prompt, which are compared with each other. A batch holds prompts
    rl.group = 12
    # Parts into which a group is cut to fit into memory, each drawn and learned from by itself
    rl.parts = 1
    # Optimizer steps for each set of samples, at equal shares of the parts: 1 is on-policy; with
    # group 12, parts 12 and updates 4 a step follows every 3 samples, as MixGRPO's code does
    rl.updates = 1
    rl.noise = "flow_sde"  # noise of a window's steps: flow_sde | cps (any prediction)
    rl.eta = 0.5  # its strength; MixGRPO has 0.7 for 25 steps
    rl.same_start = True  # a group's samples begin with the same noise
    rl.start_seed = -1  # of the starts; -1: config.seed
    rl.noise_seed = -1  # of the noise in a window's steps; -1: config.seed
    # Windows end before the first step with a smaller deviation than this
    rl.least_std = 0.0
    rl.window = get_window()
    rl.clip = 1e-4  # range of the ratio around 1
    rl.advantage_clip = 5.0  # greatest size of an advantage
    # Deviation of a group: unbiased (MixGRPO) | population (Flow-GRPO, with advantage_eps 1e-4)
    rl.advantage_std = "unbiased"
    rl.advantage_eps = 1e-8  # added to the deviation
    rl.kl_weight = 0.0  # of the distance to the starting weights or the last samples; 0: without
    # log_ratio (MixGRPO; to the policy that drew the samples) | published (Flow-GRPO; to the
    # frozen weights of config.train.init_from) | exact (that one's Gaussian KL)
    rl.kl_kind = "published"
    # The first update's ratio of likelihoods may differ from 1 by so much. 0: not at all, since
    # drawing and learning are one compiled function
    rl.ratio_tolerance = 0.0
    rl.frames = 0  # of the videos drawn, where prompts come with pictures only; 0: as the clips
    # Groups of frames decoded at a time, for decoders that stream; 0: whole videos
    rl.decode_groups = 0
    rl.watch = ()  # rewards that are measured on held-out prompts, and not trained by
    # Deviations over the held-out prompts by which a watched score may fall below its start while
    # the trained reward is above its own: the run then ends; 0: never
    rl.stop_fall = 0.0
    rl.stop_after = 2  # evaluations in a row of which that is true before the run ends
    return rl


def get_window() -> ConfigDict:
    """The steps that are random and trained; all others are deterministic."""
    window = ConfigDict()
    window.size = 2  # steps; MixGRPO has 4 of 25
    window.stay = 25  # iterations at a position
    window.stride = 1  # steps from one position to the next
    # progressive: from noise on, and back to the start | random | decaying: progressive, with
    # shorter stays at later positions
    window.order = "progressive"
    # every: all steps but the last are reached | published: as MixGRPO's class, which leaves out
    # the last two, shrinks at the end and trains nothing at one position
    window.end = "every"
    window.decay = 0.1  # of decaying: rate by which stays shorten
    window.threshold = 13  # of decaying: position from which they do
    return window
