"""``config.encode``: how --mode=encode turns ``config.data`` into a latent data set."""

from ml_collections import ConfigDict


def get_encode() -> ConfigDict:
    encode = ConfigDict()
    # Windows of each clip, for each number of frames among the buckets: one (the middle) | all (one
    # every stride frames) | random (windows_per_clip of them, by the seed)
    encode.windows = "one"
    encode.windows_per_clip = 1  # random windows of each clip; shorter clips give what they have
    encode.stride = 0  # of all windows: frames from one to the next; 0: those of the longest bucket
    # none | random: half of the windows are mirrored, by the seed | both: each is stored twice.
    # Captions and labels stay as they are
    encode.flip = "none"
    encode.dtype = "float16"  # float16 | bfloat16 | float32; the header states the error
    encode.draws = 0  # draws from the posterior stored of each window; 0: its mean
    # (frames, overlap_frames) of the chunks that a window is cut into along time, such as (17, 4);
    # each is coded by itself. Empty: as config.codec.time says, so windows are coded whole unless
    # that is chunks and they are longer than one. A single frame is coded as a picture
    encode.chunks = ()
    encode.shards = 0  # files; 0: as many as give about 128 MiB each
    encode.text = ""  # store encoded captions as this system reads them: wan | reducio | promag
    encode.text_network = ""  # of config.networks; empty: the system's own
    encode.tokenizer = ""  # the network's tokenizer.json; "words": hashed words, for stand-ins
    encode.image = ""  # store tokens of a frame, made by this one of config.networks
    # Store the latent of the content frame (where there is none, of frame 0), made by: sd_vae
    encode.content = ""
    # A draw from the posterior, as in Reducio's code, in sets and of pictures to sample from;
    # False: the mean
    encode.content_draw = True
    # 2: store each window's latent at half size, too, for FSVideo's upsampler and refiner | 0
    encode.low = 0
    encode.measure_batches = 64  # training batches that --mode=latents measures moments on
    encode.pictures = 4  # windows decoded into contact_sheet.png; 0: none
    encode.process_index = 0  # of this command, where several share the shards
    encode.process_count = 0  # commands that share the shards; 0: as many as JAX's processes
    return encode
