"""``config.plan``: what --mode=plan compiles for a topology."""

from ml_collections import ConfigDict


def get_plan() -> ConfigDict:
    plan = ConfigDict()
    # train; of a tokenizer encode | decode, of a generator or refiner sample | nfe (one evaluation
    # of it), of a latent upsampler sample, of a refiner cascade: which networks are in memory when,
    # from picture to refined video; state: what a training step holds between its calls, by shapes,
    # for several machines at once
    plan.what = "train"
    plan.bucket = ()  # frames, height, width, batch; empty: that of data.buckets with most pixels
    plan.memory_gib = 0.0  # of a device; 0: what the hardware has
    plan.tries = 6  # changes tried when the program does not fit; each is compiled
    # Effort of the compiler to make the machine code fast, from -1 to 1. At -1 a convolution
    # compiles ten times as fast; memory and traffic stay within about 7 %
    plan.effort = 0.0
    # Config of the tokenizer, such as fsae:paper, for a generator without tokenizer.path or data
    plan.tokenizer = ""
    # Config of a cascade's base model, if refiner.base names none
    plan.base = "fsvideo_dit:paper,stage=sft"
    # Config of a refiner's upsampler, if refiner.upsampler names none
    plan.upsampler = "fsvideo_upsampler:paper"
    return plan
