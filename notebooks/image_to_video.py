# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Picture to video: FSVideo's cascade in few steps
#
# FSVideo makes a small video of a picture, enlarges its latents, and refines them. This notebook
# trains all four networks on rendered shapes (tokenizer, base, upsampler, refiner) and makes videos of a first
# frame and a label; then it asks for **few steps** and shows what that costs.
#
# | device | steps of the four parts | minutes |
# |---|---|---|
# | CPU, two cores | 1000, 600, 150, 200 | not measured at these steps (`make demo-fsvideo`, twice as long, is in [measurements](../docs/measurements.md)) |
# | GPU or TPU | 2000, 1200, 300, 450 | not measured |

# %% tags=["install"]
EXTRAS = "demo"

# %%
from notebooks import kit

runs = kit.start("image_to_video")

# %% [markdown]
# ## Train the parts
#
# Each part is trained unless it is finished, and an interrupted cell goes on where it was.

# %%
import dataclasses

from experiments.fsvideo_demo import SIZES, Demo, run

size = kit.choose(cpu=SIZES["demo"], accelerator=SIZES["demo"], small=SIZES["tiny"])
steps = kit.choose(
    cpu={"tokenizer": 1000, "base": 600, "upsampler": 150, "refiner": 200},
    accelerator=dict(SIZES["demo"].steps),
    small=dict(SIZES["tiny"].steps),
)
size = dataclasses.replace(size, steps=steps, videos=kit.choose(cpu=8, accelerator=16, small=1))
status = run(Demo(runs, size))

# %% [markdown]
# ## A picture of yours
#
# The model knows coloured shapes on a plain ground and nothing else, so a photograph will not move. `PICTURE = ""`
# renders one.

# %%
from PIL import Image

from vidlatent.data.renderers.shapes import make_shape_scene, render_shape

PICTURE = ""
PROMPT = ""

scene = make_shape_scene(seed=123, index=0, frames=9)
PROMPT = PROMPT or scene.label
if not PICTURE:
    PICTURE = str(runs / "picture.png")
    Image.fromarray(render_shape(scene, [0], 64, 64)[0]).save(PICTURE)
kit.show_picture(PICTURE, width=192)
print(PROMPT)

# %% [markdown]
# ## Base model, upsampler, refiner
#
# `cascade.json` names the runs; `load_generator` makes one function of them. `seconds` says which part took how long;
# the first call compiles.

# %%
import vidlatent

cascade = vidlatent.load_generator(runs)
video = cascade(PROMPT, image=PICTURE, seed=1)
print(cascade.nfe, {part: round(seconds, 2) for part, seconds in cascade.seconds.items()})
kit.play(video, labels=[PROMPT])

# %% [markdown]
# ## Few steps
#
# Each step is one pass through the network. Without distillation, fewer steps are simply coarser;
# [few steps](../docs/few_steps.md) describes how a student is trained that needs only a few.

# %%
import time

made = {}
for number in kit.choose(cpu=(40, 10, 4), accelerator=(40, 10, 4), small=(2, 1)):
    cascade(PROMPT, image=PICTURE, seed=1, steps=number)  # compiles
    began = time.perf_counter()
    made[f"{number} steps"] = cascade(PROMPT, image=PICTURE, seed=1, steps=number)
    print(f"{number} steps: {time.perf_counter() - began:.2f} s")
kit.play(*made.values(), labels=list(made))

# %% tags=["picture"]
from vidlatent.media.sheets import contact_sheet

kit.show_picture(contact_sheet(list(made.values()), list(made), title=PROMPT, columns=9, cell=80))

# %% [markdown]
# `report.html` in the folder has given frames, base's videos, refined videos and real clips, with scores.
# Next: [bring weights](bring_weights.ipynb).

# %%
print(runs / "report.html")
