"""For the type checker alone: each class has all that the protocol of its kind asks for.

A class that lacks something, or has it with other arguments, is an error of ``make lint`` here.
``ReducioVAE`` is left out, since its posterior is a class of its own, with the same methods.
"""

from vidlatent.models.generators.base import Generator
from vidlatent.models.generators.latte.model import Latte
from vidlatent.models.generators.promag_dit.model import ProMAGDiT
from vidlatent.models.generators.reducio_dit.model import ReducioDiT
from vidlatent.models.generators.wan.model import WanDiT
from vidlatent.models.tokenizers.base import Tokenizer
from vidlatent.models.tokenizers.fsvideo.model import Autoencoder
from vidlatent.models.tokenizers.ivvae.model import IVVAE
from vidlatent.models.tokenizers.promag.model import ProMAG
from vidlatent.models.tokenizers.wan_vae.model import WanVAE
from vidlatent.train.tasks.base import Task, Validation
from vidlatent.train.tasks.generator import GeneratorTask, GeneratorValidation
from vidlatent.train.tasks.tokenizer import TokenizerTask, TokenizerValidation


def use_tokenizer(model: Tokenizer) -> None:
    del model


def use_generator(model: Generator) -> None:
    del model


def use_task(task: Task) -> None:
    del task


def use_tokenizers(fsvideo: Autoencoder, ivvae: IVVAE, promag: ProMAG, wan: WanVAE) -> None:
    use_tokenizer(fsvideo)
    use_tokenizer(ivvae)
    use_tokenizer(promag)
    use_tokenizer(wan)


def use_generators(wan: WanDiT, latte: Latte, reducio: ReducioDiT, promag: ProMAGDiT) -> None:
    use_generator(wan)
    use_generator(latte)
    use_generator(reducio)
    use_generator(promag)


def use_tasks(tokenizer: TokenizerTask, generator: GeneratorTask) -> None:
    use_task(tokenizer)
    use_task(generator)


def use_validation(validation: Validation) -> None:
    del validation


def use_validations(tokenizer: TokenizerValidation, generator: GeneratorValidation) -> None:
    use_validation(tokenizer)
    use_validation(generator)
