"""``config.kernels``: which implementation of an operation runs."""

from ml_collections import ConfigDict


def get_kernels() -> ConfigDict:
    """``auto`` chooses by platform, and the log says what it chose.

    Name a form where ``auto``'s choice fails or another one is faster. If the named form cannot do
    the job the program stops; of several, such as ``splash,xla``, the first that can is used.
    """
    kernels = ConfigDict()
    kernels.attention = "auto"  # of generators: xla | splash (TPU) | cudnn (GPU)
    kernels.qk_norm_rope = "auto"  # norm and rotation of queries and keys: xla | pallas (TPU)
    kernels.layer_mix = "auto"  # FSVideo's mixtures of earlier layers: xla | pallas (TPU)
    # native | taps | fold2d; for depthwise kernels native | shifts | rows. A tokenizer's
    # model.conv_impl comes first, unless it is auto
    kernels.conv3d = "auto"
    return kernels
