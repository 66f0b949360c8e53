"""``config.precision``: the number format of the computation."""

from ml_collections import ConfigDict


def get_precision() -> ConfigDict:
    precision = ConfigDict()
    # float32 | bfloat16 | auto: bfloat16 on TPUs and GPUs, float32 on CPUs. Parameters, losses and
    # statistics are float32 in any case.
    precision.compute = "auto"
    return precision
