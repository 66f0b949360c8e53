"""``config.data``: where clips come from and how they become batches."""

from ml_collections import ConfigDict


def get_data() -> ConfigDict:
    data = ConfigDict()
    # folder | samples | tfds | synthetic | latents | pairs (judged ones) | prompts (no pictures)
    data.source = "folder"
    # Folder of videos and images, the TFDS data_dir, a latent data set, or a list of prompts
    data.path = ""
    data.tfds_name = ""  # of the TFDS data set
    data.tfds_field = "video"  # field that holds an encoded video or image
    data.tfds_label = ""  # field that holds the class
    data.tfds_caption = ""  # field that holds a caption
    # Classes of a folder's clips: those in captions.jsonl, or with "folders" the first sub-folder
    data.labels = ""
    data.buckets = ()  # ((frames, height, width, global batch size), ...)
    # Of a clip: nearest aspect ratio | inward: the next one towards the square (Reducio's code)
    data.bucket_rule = "nearest"
    # ((frames, share of the steps), ...), one for each number of frames among the buckets; empty:
    # all alike. Buckets of one length share by the number of their clips
    data.length_weights = ()
    data.bucket_weights = ()  # share of each bucket, in place of that rule; empty: the rule
    # Buckets trained on at most, each a program to compile: the fullest of each length, then the
    # fullest of all. Other clips go to the nearest of these, stored latents are left out; 0: all
    data.max_shapes = 0
    data.fps = 0.0  # target frame rate; 0: each file's own
    # Every so manyth frame at that rate; with fps 0, of each file's own frames (Latte: 3)
    data.frame_interval = 1
    # random | centre | resized: a random half or more of the frame, stretched by at most 4/3
    data.crop = "random"
    # area: averages when shrinking, bicubic when enlarging | bilinear: antialiased, as torchvision
    data.resize = "area"
    data.flip = True  # mirror half of the training clips
    data.validation_share = 0.1  # of the files, chosen by a hash of their name
    data.validation_clips = 64  # windows scored, at most, for each clip length
    data.num_workers = 0  # processes that decode; 0: threads of this process
    data.read_threads = 2  # of each process
    data.prefetch = 4  # batches decoded ahead
    data.memory_mb = 256  # data sets that fit at bucket size are decoded once and kept; 0: never
    data.decode_timeout_s = 20.0  # longest time for one window
    data.max_pixels = 4096 * 4096  # of one frame
    data.bad_clip_budget = 0.05  # share of unreadable clips at which the run stops and lists them
    data.bad_clip_window = 1000  # number of latest clips which that share is taken of
    data.index_cache = ""  # file that remembers what was found in the clips; empty: in the workdir
    data.verify = "auto"  # before the run: header | decode (each clip whole) | auto
    data.synthetic = get_synthetic()
    return data


def get_synthetic() -> ConfigDict:
    """Clips drawn by a renderer, for ``data.source=synthetic``."""
    synthetic = ConfigDict()
    synthetic.clips = 512  # clips in the set
    synthetic.frames = 33  # of each clip
    synthetic.height = 96  # of a frame in pixels
    synthetic.width = 96  # of a frame in pixels
    synthetic.shapes = 5  # moving shapes in a scene, at most
    synthetic.fps = 24.0  # frames a second
    # scenes: camera and shapes | paths: speeds in pixels a frame | shapes: one with a label
    synthetic.kind = "scenes"
    synthetic.speed = 0.25  # of paths, pixels a frame
    synthetic.turns = 0.0  # of paths, abrupt turns of a shape a frame; 0: smooth
    return synthetic
