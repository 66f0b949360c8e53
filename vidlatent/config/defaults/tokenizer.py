"""``config.tokenizer`` (generators): the tokenizer that makes and decodes the latents."""

from ml_collections import ConfigDict


def get_tokenizer() -> ConfigDict:
    tokenizer = ConfigDict()
    tokenizer.path = ""  # its workdir; may be empty when training on a latent data set
    tokenizer.step = -1  # checkpoint; -1: the newest
    tokenizer.sample = False  # encode a draw from the posterior, not its mean
    # (frames, overlap_frames) of the chunks that a video is cut into along time; each is coded by
    # itself, and decoded chunks are blended (ProMAG). Empty: videos are coded whole, and latent
    # data sets are read as their header says
    tokenizer.chunks = ()
    return tokenizer
