# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Bring weights
#
# Files of other projects are read under their released names and written under them. This notebook shows
# for DC-AE, IV-VAE, Reducio, Wan's autoencoders and Wan's transformer what is read, how it is checked, and what happens with a file that does not fit.
#
# **No released file is downloaded here.** The files below are made on the spot: they have the released names and layout at a
# small size, filled with random numbers, so videos are grey. To read a real file, set its
# path and the preset in the last section.
#
# | system | file, as its project publishes it | preset |
# |---|---|---|
# | DC-AE | [mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers](https://huggingface.co/mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers), `.safetensors` | `configs/dcae.py:paper` |
# | IV-VAE | linked from [its repository](https://github.com/ali-vilab/iv-vae) | `configs/ivvae.py:z16` (or `z4`, `z8`) |
# | Reducio | [microsoft/Reducio-VAE](https://huggingface.co/microsoft/Reducio-VAE), `.ckpt`, which needs torch to be read | `configs/reducio_vae.py:paper` |
# | Wan2.1's, Wan2.2's VAE | `Wan2.1_VAE.pth`, `Wan2.2_VAE.pth` of Wan-AI, which need torch to be read, or Diffusers' `.safetensors` | `configs/wan_vae.py:wan21`, `wan22` |
# | Wan2.1's transformer | [Wan-Video/Wan2.1](https://github.com/Wan-Video/Wan2.1), both namings | `configs/fsvideo_dit.py:paper,start=wan` |
#
# [All files that are known](../docs/weights.md) are on a page of their own.
#
# Minutes: one, of processor time, was measured on a CPU for everything below; other devices not measured.

# %% tags=["install"]
EXTRAS = "demo"

# %%
from notebooks import kit

runs = kit.start("bring_weights")

# %% [markdown]
# ## Files in the released layout
#
# For each system the small model of its demo, filled with random numbers and written under the released names.

# %%
import jax
import numpy as np

from vidlatent import config as configs
from vidlatent.train.tasks.base import TASKS
from vidlatent.weights.files import save_params

configs_of = {
    "dcae": configs.load("configs/dcae.py"),
    "ivvae": configs.load("configs/ivvae.py"),
    "reducio": configs.load("configs/reducio_vae.py"),
    "wan21_vae": configs.load("configs/wan_vae.py"),
    "wan22_vae": configs.load("configs/wan_vae.py:demo,model=wan22"),
    # A generator's channels are those of its latents, and there are none here.
    "wan": configs.load("configs/fsvideo_dit.py", {"generator.latent_channels": "16"}),
}


def draw(config):
    """Random parameters of a config's model: normal, of deviation 0.02."""
    random = np.random.default_rng(0)
    shapes = TASKS.get(config.task).abstract_params(config)
    return jax.tree.map(
        lambda leaf: 0.02 * random.standard_normal(leaf.shape).astype(np.float32), shapes
    )


for name, config in configs_of.items():
    family = config.generator.name if name == "wan" else config.model.name
    number = save_params(runs / f"{name}.safetensors", draw(config), family=family)
    size = (runs / f"{name}.safetensors").stat().st_size
    print(f"{name}.safetensors: {number} tensors, {size / 1e6:.1f} MB")

# %% [markdown]
# ## What is in a file
#
# A safetensors file begins with a table of names, shapes and types. No code is run by reading it, unlike a pickle.

# %%
from vidlatent.weights.files import read_tensors

for name in configs_of:
    tensors = read_tensors(runs / f"{name}.safetensors")
    print(name)
    for key in list(tensors)[:4]:
        print("   ", key, tensors[key].shape, tensors[key].dtype)
    print("    ...")

# %% [markdown]
# ## Read them
#
# `--mode=convert --from=FILE --to=RUN` recognises the naming, reports unused, missing and
# misshaped names together, and writes a run that every mode reads. (A generator's run also knows the latents that it
# was trained on, which a file of weights does not; its weights are a start for training.)

# %%
import shutil

from vidlatent.convert.run import convert

OPTIONS = {"from_table": "auto", "to_table": "auto", "start": "", "verify": "", "step": -1}
for name, config in configs_of.items():
    shutil.rmtree(runs / name, ignore_errors=True)  # a run is never replaced
    target = "" if name == "wan" else str(runs / name)
    convert(config, runs, **OPTIONS, **{"from": str(runs / f"{name}.safetensors"), "to": target})

# %% [markdown]
# ## There and back, bit by bit
#
# Written again under the released names, nothing may have changed: not a value, not a name.

# %%
for name, config in configs_of.items():
    source = str(runs / (f"{name}.safetensors" if name == "wan" else name))
    back = str(runs / f"{name}_back.safetensors")
    convert(config, runs, **OPTIONS, **{"from": source, "to": back, "overwrite": True})
    before, after = (read_tensors(file) for file in (runs / f"{name}.safetensors", back))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    print(f"{name}: {len(before)} tensors are the same, bit by bit")

# %% [markdown]
# ## A file that does not fit
#
# One sentence that says what the file is and what to do.

# %%
from vidlatent import VidlatentError

try:
    keys = {"from": str(runs / "ivvae.safetensors"), "to": ""}
    convert(configs.load("configs/dcae.py"), runs, **OPTIONS, **keys)
except VidlatentError as error:
    print(error)

# %% [markdown]
# ## Against numbers of the published code
#
# Names and shapes may fit while an operation differs. The repository has *reference cases*: small random
# weights, an input, and the outputs that the published code gave for them. `--verify=CASE` runs one, and fails
# if an output is off by more than rounding. (IV-VAE's and Reducio's are run in the same way; Wan's are compared in the
# repository's tests, `tests/parity`.)

# %%
for name, case in {"dcae": "dcae", "fsae": "fsae3d"}.items():
    options = OPTIONS | {"verify": f"tests/reference/{case}"}
    convert(configs.load(f"configs/{name}.py"), runs, **options, **{"from": "", "to": ""})

# %% [markdown]
# ## Encode and decode with what was read
#
# The weights are random, so there is nothing to see but that everything runs.

# %% tags=["picture"]
import vidlatent
from vidlatent.media.sheets import contact_sheet

frames, fps = kit.clip(
    kit.sample_clip(), frames=kit.choose(cpu=17, accelerator=17, small=9), height=64
)
rows, labels = [frames], ["original"]
for name in ("dcae", "ivvae", "wan21_vae", "wan22_vae"):
    codec = vidlatent.load_codec(runs / name)
    coded = codec.encode(frames)
    print(codec, coded)
    rows.append(codec.decode(coded))
    labels.append(f"{name}\nrandom weights")
kit.show_picture(contact_sheet(rows, labels, columns=5))

# %% [markdown]
# ## A real file
#
# The preset of the table above must be the file's. On a machine with the file:
#
# ```sh
# python -m vidlatent.main --mode=convert --config=configs/dcae.py:paper --from=FILE --to=runs/dcae-paper
# python -m vidlatent.main --mode=reconstruct --workdir=runs/dcae-paper --input=my.mp4 --output=restored.mp4
# ```
#
# FSAE's training starts from DC-AE's file (`--config.train.init_from=FILE`), fsvideo_dit's from Wan's.

# %%
FILE, PRESET = "", "configs/dcae.py:paper"

if FILE:
    convert(configs.load(PRESET), runs, **OPTIONS, **{"from": FILE, "to": str(runs / "released")})
    print(vidlatent.load_codec(runs / "released"))
else:
    print("no file named: nothing was read")
