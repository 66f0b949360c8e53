# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Encode clips, train a generator: class to video
#
# Generators do not see pixels. Here a tokenizer is trained on rendered clips, "red square moving left"
# and 47 other classes, all clips are *encoded once* into a set of latents, and a small diffusion transformer
# (FSVideo's, with layer memory) learns to make latents of a class. The tokenizer's decoder turns them into videos.
#
# | device | steps of tokenizer and generator | minutes |
# |---|---|---|
# | CPU, two cores | 800 and 600 | not measured at these steps (`make demo-generator`, which is three times as long, is in [measurements](../docs/measurements.md)) |
# | GPU or TPU | 2400 and 3000 | not measured |

# %% tags=["install"]
EXTRAS = "demo"

# %%
from notebooks import kit

runs = kit.start("generator")

# %% [markdown]
# ## The clips
#
# They are rendered while training, so nothing is downloaded. The label of a clip is its class.

# %%
from vidlatent.data.renderers.shapes import LABELS, make_shape_scene, render_shape

frames, side = kit.choose(cpu=(9, 32), accelerator=(9, 32), small=(5, 16))
scenes = [make_shape_scene(seed=0, index=index, frames=frames) for index in range(4)]
kit.play(
    *(render_shape(scene, range(frames), 64, 64) for scene in scenes),
    labels=[scene.label for scene in scenes],
)
print(len(LABELS), "classes:", ", ".join(LABELS[:4]), "...")

# %% [markdown]
# ## A tokenizer for them

# %%
import dataclasses

from experiments.generator_demo import TOKENIZERS, make_tokenizer_config
from vidlatent.train.loop import train

kind = TOKENIZERS["fsvideo_dit"]
if kit.SMALL:
    small = {"data.validation_clips": "4", "eval.pictures": "1"}
    kind = dataclasses.replace(kind, keys=dict(kind.keys) | small)
tokenizer = make_tokenizer_config(
    kind,
    (frames, side, side),
    channels=kind.channels,
    clips=kit.choose(cpu=2048, accelerator=4096, small=64),
    steps=kit.choose(cpu=800, accelerator=2400, small=6),
    seed=0,
)
status = train(tokenizer, runs / "tokenizer")

# %% [markdown]
# ## Encode, once
#
# The set knows which tokenizer made it, and the mean and deviation of each channel. A generator refuses
# latents of another tokenizer.

# %%
from vidlatent.encode.run import encode_set

encode_set(tokenizer, runs / "tokenizer", -1, str(runs / "latents"))
kit.show_picture(next((runs / "latents").glob("*.png")), width=700)

# %% [markdown]
# ## The generator
#
# Channels and sizes come from the latents.

# %%
from vidlatent import config as configs

keys = {
    "data.path": str(runs / "latents"),
    "tokenizer.path": str(runs / "tokenizer"),
    "data.buckets": str(((frames, side, side, kit.choose(cpu=32, accelerator=64, small=4)),)),
    "train.steps": kit.choose(cpu="600", accelerator="3000", small="4"),
    "sample.size": str((frames, side, side)),
}
if kit.SMALL:
    keys |= {
        "data.validation_clips": "4",
        "diffusion.eval_levels": "1",
        "generator.depth": "2",
        "generator.width": "32",
        "generator.hidden": "32",
        "sample.grid": "0",
        "sampler.steps": "2",
        "optim.warmup_steps": "2",
        "eval.every": "0",
    }
generator_config = configs.load("configs/fsvideo_dit.py", keys)
status = train(generator_config, runs / "generator")

# %%
kit.show_curves(runs / "generator", ["val/loss", "train/loss"])

# %% [markdown]
# ## Make videos
#
# The same prompt with another `seed` is another video; `steps` and `guidance` trade time for quality.

# %%
import vidlatent

generator = vidlatent.load_generator(runs / "generator")
print(generator)
prompts = ["red square moving left", "green circle moving right", "blue square moving up"]
videos = [generator(prompt, seed=number) for number, prompt in enumerate(prompts)]
kit.play(*videos, labels=prompts)

# %% tags=["picture"]
from vidlatent.media.sheets import contact_sheet

kit.show_picture(contact_sheet(videos, prompts, columns=frames, cell=80))

# %% [markdown]
# ## Does it do as told?
#
# Colour, shape and direction can be read from a video of these clips, so success is a number and not an
# impression. (With the few steps of a small run it is near chance.)

# %%
from vidlatent.data.renderers.shapes import read_label

for prompt, video in zip(prompts, videos, strict=True):
    print(f"asked for {prompt!r}, read {read_label(video)!r}")

# %% [markdown]
# From the command line it is three commands, see "A generator, step by step" in the
# [README](../README.md). Next: [picture to video](image_to_video.ipynb).
