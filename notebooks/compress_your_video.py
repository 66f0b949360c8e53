# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Compress your video
#
# A video goes in, a small latent comes out, and a video comes back. There are no released weights for
# FSAE, so this notebook first trains a small one for minutes on two short clips. Then it compresses a
# clip that training never saw, or **your own**, and shows original and result beside each other, with
# PSNR and bytes.
#
# Nothing is uploaded anywhere, no token is needed, and the kernel need not be restarted.
#
# | device | training steps | minutes |
# |---|---|---|
# | CPU, two cores | 400 | about 2 measured on an idle machine (the training of `make demo`), and 1 for the rest (not measured) |
# | GPU or TPU | 2000 | not measured |

# %% tags=["install"]
EXTRAS = "demo"

# %%
from notebooks import kit

runs = kit.start("compress")

# %% [markdown]
# ## A tokenizer
#
# A *tokenizer* is an encoder and a decoder: the encoder turns 4x4x4 pixels of 3 colours, 192 numbers,
# into 16, and the decoder turns those into pixels again. The published FSAE is larger and compresses
# harder, 64x64x4 pixels into 128 numbers; it takes a cluster to train.
#
# Run the cell again, and it goes on where it was; a finished run is used as it is.

# %%
from vidlatent import config as configs
from vidlatent.train.loop import train

keys = {
    "train.steps": kit.choose(cpu="400", accelerator="2000", small="6"),
    "data.buckets": kit.choose(
        cpu="((9, 64, 64, 4),)", accelerator="((17, 128, 128, 8),)", small="((5, 32, 32, 2),)"
    ),
}
if kit.SMALL:
    keys |= {"data.validation_clips": "2", "eval.every": "0", "optim.warmup_steps": "2"}
config = configs.load("configs/fsae.py", keys)
status = train(config, runs / "tokenizer")

# %% [markdown]
# How it learned: PSNR of clips that it was not trained on, and the losses. (One number a curve if the
# run is short.)

# %%
kit.show_curves(runs / "tokenizer", ["val/psnr", "val/ssim", "train/loss"])

# %% [markdown]
# ## Your video
#
# On Colab set `UPLOAD = True` and run the cell to choose a file of yours; elsewhere write its path into
# `VIDEO`. Without either it is a clip of a face in a car. Long and large videos work, but a demo on two
# cores takes its time, so only the beginning is used, scaled down.

# %%
UPLOAD = False
VIDEO = ""

if UPLOAD:
    from google.colab import files

    VIDEO = next(iter(files.upload()))
original, fps = kit.clip(
    VIDEO or kit.sample_clip(),
    frames=kit.choose(cpu=61, accelerator=241, small=13),
    height=kit.choose(cpu=144, accelerator=480, small=64),
)
print(f"{len(original)} frames of {original.shape[1]}x{original.shape[2]} at {fps:g} a second")

# %%
import vidlatent

codec = vidlatent.load_codec(runs / "tokenizer")
print(codec)
data = codec.compress(original, fps=fps)
restored = codec.decompress(data)

# %%
from benchmarks.same_bytes import compare, score, write_table

raw, scores = original.nbytes, score(original, restored)
print(f"raw pixels {raw:,} bytes, compressed {len(data):,}: {raw / len(data):.1f} times smaller")
print(f"PSNR {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.3f}")
kit.play(original, restored, labels=["original", "compressed and restored"], fps=fps)

# %% [markdown]
# The same frames as a picture, with four times the difference below:

# %% tags=["picture"]
from vidlatent.media.sheets import contact_sheet

kit.show_picture(
    contact_sheet([original, restored], ["original", "restored"], columns=5, difference=4)
)

# %% [markdown]
# ## Beside H.264 and AV1
#
# What would a video codec make of as many bytes? Far more, and that is to be expected: they have had
# thirty years, and this tokenizer minutes. What a latent is for is not the file but what is done *in*
# it: a generator works on so many fewer numbers.

# %%
from fractions import Fraction

from IPython.display import Markdown, display

rows, videos = compare(codec, original, Fraction(fps).limit_denominator(1001))
display(Markdown(write_table(rows)))

# %% [markdown]
# ## What the latent looks like
#
# A linear map from latents to small pictures, fitted in seconds, shows at nearly no cost what a latent
# is of. Generators use it to show what they draw.

# %%
from vidlatent.codec.preview import fit_preview

fit_preview(config, runs / "tokenizer", -1)
kit.show_picture(runs / "tokenizer" / "preview.png")

# %% [markdown]
# ## A file to keep
#
# `compress` of a *file* keeps frame rate, times and sound; the command line does the same:
#
# ```sh
# python -m vidlatent.main --mode=compress --workdir=runs/notebooks/compress/tokenizer --input=my.mp4 --output=my.vlat
# python -m vidlatent.main --mode=decompress --workdir=runs/notebooks/compress/tokenizer --input=my.vlat --output=restored.mp4
# ```
#
# Next: [train a tokenizer on your own clips](train_a_tokenizer.ipynb).

# %%
vidlatent.write_video(runs / "restored.mp4", restored, fps=fps)
(runs / "my.vlat").write_bytes(data)
print(f"wrote {runs / 'restored.mp4'} and {runs / 'my.vlat'}")
