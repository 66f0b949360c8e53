"""``config.codec``: how videos and the clips of latent sets are cut in time and space.

--mode=reconstruct, --mode=encode, --mode=sample and ``vidlatent.load_codec`` all follow it.

"auto", 0 and -1 stand for a choice that depends on the tokenizer, the video and the free memory.
"""

from ml_collections import ConfigDict


def get_codec() -> ConfigDict:
    codec = ConfigDict()
    # stream: piece by piece, as if coded whole | windows: the same for decoders that look ahead |
    # chunks: each by itself, blended where they overlap | auto: the first of these that is possible
    codec.time = "auto"
    codec.groups = 2  # frame groups (Reducio: clips) in a piece of a stream
    # Pieces that one call runs in a loop on the device, when that many are at hand: fewer calls at
    # the memory of one piece; 0: 1 on CPUs, else 4
    codec.scan_groups = 0
    codec.window_latents = 16  # latent frames that a window adds
    codec.chunk_frames = 0  # of a chunk; 0: 17, or the nearest shorter length that fits
    codec.overlap_frames = -1  # shared by neighbouring chunks; -1: 4
    # whole | strips: of rows, exact (IV-VAE) | layers: convolution by convolution, exact (ProMAG) |
    # layers_literal: as its paper words it | tiles: with exact margins (FSAE) or evenly spread and
    # blended (Reducio) | tiles_published: as in its released code | auto: the largest parts that
    # fit into the free memory; the log says which, and why. Reducio's tiles change its latents, so
    # there auto is tiles above 320 pixels, however much memory there is, and whole another space
    codec.space = "auto"
    codec.memory_gb = 0.0  # memory that auto counts on; 0: what is free
    codec.strip_mb = 0.0  # of the largest array of a strip; 0: 384
    codec.layer_positions = 0  # side of a tile in positions of each layer's map; 0: 64
    codec.layer_overlap_positions = -1  # shared by neighbouring tiles; -1: 0, literal 4
    codec.layer_dead_positions = -1  # at a literal tile's inner edges, left out; -1: 1
    codec.tile_pixels = 0  # distance of the tiles; 0: 256, FSAE 512
    # Pixels that a tile reads beyond that; -1: a quarter of it (FSAE always reads as many as make
    # tiles exact)
    codec.tile_overlap_pixels = -1
    return codec
