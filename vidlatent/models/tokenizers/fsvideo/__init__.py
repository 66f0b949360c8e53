"""FSVideo's tokenizer family: the DC-AE image model and the causal video model built on it."""

from vidlatent.models.tokenizers.fsvideo.model import Autoencoder, build_dcae, build_fsae

__all__ = ["Autoencoder", "build_dcae", "build_fsae"]
