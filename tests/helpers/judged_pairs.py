"""Folders of judged pairs, and configs of rewards that learn from them."""

import json

import numpy as np

from vidlatent.config import get_defaults
from vidlatent.data.renderers.shapes import COLOURS, make_shape_scene, render_shape
from vidlatent.media.write import write_video

SIZE, FPS = (5, 24, 24), 8.0


def write_pairs(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def write_colour_pairs(folder, count):
    """Of two moving shapes the one that has the prompt's colour is preferred."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    names, rows = list(COLOURS), []
    for number in range(count):
        videos, order = [], rng.permutation(len(names))[:2]
        for side, colour in enumerate(order):
            # Labels come in blocks of each of them once: some of the block has the colour.
            scenes = (make_shape_scene(side, 24 * number + place, SIZE[0]) for place in range(24))
            scene = next(scene for scene in scenes if scene.colour == names[colour])
            videos.append(f"{number}_{side}.mp4")
            write_video(folder / videos[-1], render_shape(scene, range(SIZE[0]), *SIZE[1:]), FPS)
        right = int(rng.integers(2))
        prompt = f"a {names[order[right]]} shape"
        preferred = ("first", "second")[right]
        rows.append(dict(zip(("first", "second"), videos, strict=True)))
        rows[-1] |= {"prompt": prompt, "preferred": preferred}
    return write_pairs(folder, rows)


def reward_config(folder, **keys):
    config = get_defaults("reward", "toy")
    config.task = "reward"
    config.rewards.use = ("mps",)
    config.rewards.mps.network, config.rewards.mps.tokenizer = "mps_tiny", "words"
    config.rewards.mps.frames_at_once = SIZE[0]
    config.data.source, config.data.path = "pairs", str(folder)
    config.data.buckets, config.data.fps = ((*SIZE, 16),), FPS
    config.data.validation_share, config.data.flip = 0.2, False
    config.train.tensorboard, config.eval.every = False, 0
    config.checkpoint.best_metric = "accuracy"
    for key, value in keys.items():
        section, name = key.split("__")
        config[section][name] = value
    return config
