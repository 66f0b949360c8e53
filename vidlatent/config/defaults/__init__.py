"""The default value of every config key, and what the key means: one file a section.

A config starts from ``get_defaults`` (a tokenizer's) or ``get_generator_defaults`` and changes what
differs. Code has no defaults of its own: a key that is not here, and that no config adds to
``config.model`` or ``config.generator``, does not exist.
"""

from ml_collections import ConfigDict

from vidlatent.config.defaults.bench import get_bench
from vidlatent.config.defaults.checkpoint import get_checkpoint
from vidlatent.config.defaults.codec import get_codec
from vidlatent.config.defaults.compress import get_compress
from vidlatent.config.defaults.conditions import get_conditions
from vidlatent.config.defaults.data import get_data
from vidlatent.config.defaults.diffusion import get_diffusion
from vidlatent.config.defaults.discriminator import get_discriminator
from vidlatent.config.defaults.distill import get_distill
from vidlatent.config.defaults.encode import get_encode
from vidlatent.config.defaults.eval import get_eval
from vidlatent.config.defaults.kernels import get_kernels
from vidlatent.config.defaults.latents import get_latents
from vidlatent.config.defaults.loss import get_loss
from vidlatent.config.defaults.mesh import get_mesh
from vidlatent.config.defaults.model import get_generator, get_model
from vidlatent.config.defaults.networks import get_networks
from vidlatent.config.defaults.optim import get_lora, get_optim
from vidlatent.config.defaults.plan import get_plan
from vidlatent.config.defaults.precision import get_precision
from vidlatent.config.defaults.processes import get_processes
from vidlatent.config.defaults.refiner import get_refiner
from vidlatent.config.defaults.refl import get_refl
from vidlatent.config.defaults.rewards import get_rewards
from vidlatent.config.defaults.rl import get_rl
from vidlatent.config.defaults.sample import get_sample
from vidlatent.config.defaults.sampler import get_sampler
from vidlatent.config.defaults.tokenizer import get_tokenizer
from vidlatent.config.defaults.train import get_train
from vidlatent.config.defaults.upsampling import get_upsampling

__all__ = ["GENERATOR_SECTIONS", "get_defaults", "get_generator_defaults", "is_generator"]

# Sections that only the configs of generators have.
GENERATOR_SECTIONS = (
    "generator",
    "tokenizer",
    "latents",
    "diffusion",
    "conditions",
    "sampler",
    "sample",
    "refiner",
    "upsampling",
    "distill",
    "rl",
    "refl",
)


def is_generator(config: ConfigDict) -> bool:
    """Whether a config is that of a generator, not of a tokenizer."""
    return "generator" in config


def get_defaults(name: str, preset: str) -> ConfigDict:
    """The keys of a tokenizer's config; ``model`` and ``loss`` are still empty."""
    config = ConfigDict()
    config.task = "tokenizer"  # what is trained
    # Modules imported before anything is built, which register models, losses, sources, ... of your
    # own; --import=my_package adds to them
    config.imports = ()
    config.name = name  # system; with the preset it names the default workdir
    config.preset = preset  # variant of the system that the config file was asked for
    config.recipe = ""  # training stage, such as "fsae 1"; the next stage asks for it
    config.seed = 0  # of the initial parameters, the noise and the order of the data
    config.model = get_model()
    config.loss = get_loss()
    config.discriminator = get_discriminator()
    config.networks = get_networks()
    config.data = get_data()
    config.optim = get_optim()
    config.optim.accumulate = 1  # micro-batches whose gradients are summed into one step
    config.optim.lora = get_lora()
    config.optim.ema_decay = 0.999  # of the averaged parameters, which are evaluated and served
    config.precision = get_precision()
    config.kernels = get_kernels()
    config.mesh = get_mesh()
    config.processes = get_processes()
    config.train = get_train()
    config.checkpoint = get_checkpoint()
    config.codec = get_codec()
    config.compress = get_compress()
    config.encode = get_encode()
    config.eval = get_eval()
    config.rewards = get_rewards()
    config.plan = get_plan()
    config.bench = get_bench()
    return config


def get_generator_defaults(name: str, preset: str) -> ConfigDict:
    """The keys of a generator's config: those of all configs and ``GENERATOR_SECTIONS``."""
    config = get_defaults(name, preset)
    config.task = "generator"
    config.generator = get_generator()
    config.tokenizer = get_tokenizer()
    config.latents = get_latents()
    config.diffusion = get_diffusion()
    config.conditions = get_conditions()
    config.sampler = get_sampler()
    config.sample = get_sample()
    config.refiner = get_refiner()
    config.upsampling = get_upsampling()
    config.distill = get_distill()
    config.rl = get_rl()
    config.refl = get_refl()
    config.checkpoint.best_metric, config.checkpoint.best_mode = "loss", "min"
    return config
