"""``config.rewards``: judges of generated videos (vidlatent/rewards), and how much each counts."""

from ml_collections import ConfigDict


def get_rewards() -> ConfigDict:
    """Options of each reward stand in a group of its name; that of another package in a new one."""
    rewards = ConfigDict()
    # Rewards that a fine-tuning raises: motion, colour, sharpness, mps, videoalign
    rewards.use = ()
    # (score, weight) pairs, such as (("motion", 1.0), ("colour", 0.5)); a score that is not named
    # does not count. (): every score counts 1
    rewards.weights = ()
    # Of the task 'reward', which trains a reward on judged pairs: how readily a tie is called
    rewards.ties = 5.0
    rewards.colour = ConfigDict()
    # red | green | blue | yellow; empty: the first of them in each prompt
    rewards.colour.colour = ""
    # share: of pixels near the colour; closeness: one minus the mean squared distance
    rewards.colour.measure = "share"
    rewards.colour.width = 0.25  # of 'share': distance in RGB in [0, 1] that still counts as near
    rewards.mps = get_mps()
    rewards.videoalign = get_videoalign()
    return rewards


def get_mps() -> ConfigDict:
    """MPS, preference for the frames; its weights are ``config.networks.mps``."""
    mps = ConfigDict()
    mps.network = "mps"  # mps_tiny: a small random one, to try things out
    # CLIP's tokenizer.json, or bpe_simple_vocab_16e6.txt.gz; words: hashed words, for mps_tiny
    mps.tokenizer = ""
    mps.condition = "overall"  # overall | aesthetics | quality | semantic, or a text of your own
    # Share of the largest similarity to the condition above which a token of the prompt counts:
    # 0.3 for published scores; training took 0.01
    mps.threshold = 0.3
    mps.padding = -1  # number that texts are filled up with; -1: the end mark's, as in training
    # Pixels that CLIP sees: none: not rounded; straight: rounded as published, with a gradient all
    # the same; round: rounded, for scores alone
    mps.quantize = "none"
    # A video's score is the mean over so many of its frames, those that score lowest; 0: over all.
    # FSVideo's fine-tuning takes 10
    mps.lowest = 0
    mps.frames_at_once = 4  # frames of each video that are judged at a time; memory against speed
    return mps


def get_videoalign() -> ConfigDict:
    """VideoAlign, a language model's judgement; its weights are ``config.networks.videoalign``."""
    videoalign = ConfigDict()
    videoalign.network = "videoalign"  # videoalign_tiny: a small random one, to try things out
    # tokenizer.json of the released reward; words: hashed words, for videoalign_tiny
    videoalign.tokenizer = ""
    # Text around the prompt, with {prompt} in its place, or its token numbers as .json. Empty: the
    # one that is stored with the weights (convert's --template), or else a wording of our own,
    # which does not give published scores
    videoalign.template = ""
    videoalign.picture = False  # our own wording shows the given first frame before the video
    # sequential: the number of each token, as the released reward was trained; axes: Qwen2-VL's
    # positions in time, rows and columns
    videoalign.positions = "sequential"
    # Pixels that it sees: none: not rounded; straight: rounded as published, with a gradient all
    # the same; round: rounded, for scores alone
    videoalign.quantize = "none"
    videoalign.rate = 2.0  # frames a second that it sees
    videoalign.least_pixels = 100352  # of a frame after resizing: smaller videos are enlarged
    videoalign.most_pixels = 200704  # of a frame after resizing: larger videos are shrunk
    videoalign.longest = (
        6144  # tokens of video and texts together, as in training; more are refused
    )
    videoalign.bucket = 64  # prompts are padded to a multiple of so many tokens
    videoalign.mean = (3.6757, 1.1646, 2.8105)  # of the released VQ, MQ and TA; 0 after scaling
    videoalign.std = (2.2476, 1.3811, 2.5121)  # of the released VQ, MQ and TA; 1 after scaling
    return videoalign
