# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Train a tokenizer on your own clips
#
# A folder of videos and pictures becomes a tokenizer: first by the difference between pixels, then with
# a *critic* (a discriminator), a second network that learns to tell restored clips from real ones and
# pushes the decoder towards what looks real. Curves and pictures after each stage.
#
# | device | steps of both stages | minutes |
# |---|---|---|
# | CPU, two cores | 300 and 150 | not measured as a whole; 400 steps of the first stage took 1.7 on an idle machine |
# | GPU or TPU | 2000 and 1000 | not measured |

# %% tags=["install"]
EXTRAS = "demo"

# %%
from notebooks import kit

runs = kit.start("train")

# %% [markdown]
# ## Your clips
#
# Put videos (mp4, mov, mkv, webm, gif ...) and pictures into a folder and name it here. On Colab
# `UPLOAD = True` asks for files. Without either, three short sample clips are cut into pieces, so that the
# notebook runs as it is; real training wants thousands of clips.

# %%
import shutil

import vidlatent

UPLOAD = False
CLIPS = ""

if UPLOAD:
    from google.colab import files

    CLIPS = str(kit.folder("train/clips"))
    for name in files.upload():
        shutil.move(name, f"{CLIPS}/{name}")
if not CLIPS:
    CLIPS = str(kit.folder("train/samples"))
    length = kit.choose(cpu=24, accelerator=24, small=9)
    height = kit.choose(cpu=144, accelerator=272, small=48)
    for name in ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"):
        frames, fps = kit.clip(kit.sample_clip(name), frames=5 * length, height=height)
        for part in range(len(frames) // length):
            piece = frames[part * length : (part + 1) * length]
            vidlatent.write_video(f"{CLIPS}/{name[:-4]}_{part}.mp4", piece, fps)
print(f"clips in {CLIPS}")

# %% [markdown]
# ## First stage: pixels
#
# `data.buckets` is a list of `(frames, height, width, batch)`: each clip is cut to the bucket nearest to
# its shape. A fifth of the clips is held out, and all scores are of those. What cannot be read is left out and counted.

# %%
from vidlatent import config as configs
from vidlatent.train.loop import train

keys = {
    "data.source": "folder",
    "data.path": CLIPS,
    "data.validation_share": "0.2",
    "data.buckets": kit.choose(
        cpu="((9, 64, 64, 4),)", accelerator="((17, 128, 128, 8),)", small="((5, 32, 32, 2),)"
    ),
}
if kit.SMALL:
    keys |= {"data.validation_clips": "2", "eval.every": "0", "optim.warmup_steps": "2"}
steps = kit.choose(cpu=(300, 150), accelerator=(2000, 1000), small=(6, 4))
first = configs.load("configs/fsae.py", keys | {"train.steps": str(steps[0])})
status = train(first, runs / "first")

# %%
kit.show_curves(runs / "first", ["val/", "train/loss"])

# %% [markdown]
# ## Second stage: the critic
#
# It starts from the first stage, `train.init_from`. The critic has an optimizer of its own, and its
# weight grows in the first steps. PSNR usually falls a little while edges and textures return: PSNR rewards
# blur, the critic does not. Look at the pictures.

# %%
second = configs.load(
    "configs/fsae.py:demo,stage=2",
    keys
    | {"train.steps": str(steps[1]), "train.init_from": str(runs / "first")}
    | (
        {"discriminator.model.widths": "(4, 8, 8)", "discriminator.warmup_steps": "2"}
        if kit.SMALL
        else {}
    ),
)
status = train(second, runs / "second")

# %%
kit.show_curves(runs / "second", ["val/", "train/loss", "train/discriminator"])

# %% [markdown]
# ## Both beside the original

# %%
import numpy as np

from benchmarks.same_bytes import score

frames, fps = kit.clip(
    kit.sample_clip(),
    frames=kit.choose(cpu=33, accelerator=97, small=9),
    height=kit.choose(cpu=144, accelerator=256, small=48),
)
shown = {"original": frames}
for name in ("first", "second"):
    codec = vidlatent.load_codec(runs / name)
    shown[name] = codec.decode(codec.encode(frames))
    print(name, {key: round(value, 3) for key, value in score(frames, shown[name]).items()})
kit.play(*shown.values(), labels=["original", "pixels only", "with critic"], fps=fps)

# %% tags=["picture"]
from vidlatent.media.sheets import contact_sheet

half = slice(frames.shape[1] // 4, -(frames.shape[1] // 4))  # the middle, where the face is
kit.show_picture(
    contact_sheet(
        [np.ascontiguousarray(video[:, half, half]) for video in shown.values()],
        ["original", "pixels only", "with critic"],
        columns=5,
    )
)

# %% [markdown]
# Each run has a page with curves, sheets and playing videos, `eval/step_N/report.html`, TensorBoard
# files, and `metrics.jsonl`. The same from the command line:
#
# ```sh
# python -m vidlatent.main --config=configs/fsae.py --config.data.source=folder --config.data.path=DIR --workdir=runs/mine
# python -m vidlatent.main --config=configs/fsae.py:demo,stage=2 --config.data.source=folder --config.data.path=DIR --config.train.init_from=runs/mine --workdir=runs/mine-critic
# ```
#
# Next: [train a generator on latents](encode_and_train_a_generator.ipynb).

# %%
print(*sorted(str(path) for path in runs.glob("*/eval/*/report.html")), sep="\n")
