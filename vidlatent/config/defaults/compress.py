"""``config.compress``: how --mode=compress writes the latents of a video into a file."""

from ml_collections import ConfigDict


def get_compress() -> ConfigDict:
    compress = ConfigDict()
    compress.dtype = "float16"  # float16 | bfloat16 | float32; the log states the rounding error
    # What packs them without loss: lzma (smallest) | zlib (faster) | none
    compress.coder = "lzma"
    # Put the decoder's weights inside, so that the file is restored without the run; the log tells
    # their bytes
    compress.weights = False
    return compress
