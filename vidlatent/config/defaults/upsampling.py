"""``config.upsampling``: how a latent upsampler is trained (FSVideo 2.4.1)."""

from ml_collections import ConfigDict


def get_upsampling() -> ConfigDict:
    upsampling = ConfigDict()
    # Weight of the L1 between latents; config.loss has the terms of decoded frames (FSVideo, eq. 9)
    upsampling.latent_weight = 0.1
    # What decoded frames are compared with: video (the clip; training from videos) | decoded (the
    # decoding of the clip's own latent, as a latent set holds no frames) | auto: whichever is there
    upsampling.target = "auto"
    # Side of the decoded patch in latents of the large size, with a margin that decoders spoil; 0:
    # whole frames, as always where the target is decoded or the tokenizer decodes no patches
    upsampling.patch_latents = 0
    upsampling.frames = 0  # latent frames that are decoded, from the first on; 0: all
    return upsampling
