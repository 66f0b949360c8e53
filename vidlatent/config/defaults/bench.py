"""``config.bench``: what --mode=bench measures on the devices at hand."""

from ml_collections import ConfigDict


def get_bench() -> ConfigDict:
    bench = ConfigDict()
    # Programs as in plan.what, and loop: the training loop with its data; empty: all of the model's
    bench.what = ()
    bench.bucket = ()  # as plan.bucket
    bench.warmup = 2  # runs that do not count
    bench.repeats = 10  # runs that count
    bench.inputs = 3  # different inputs, used in turn
    bench.loop_steps = 100  # steps of the loop
    return bench
