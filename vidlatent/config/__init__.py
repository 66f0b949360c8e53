"""Configs: Python files with ``get_config(arg)``, overridden from the command line, locked.

``--config=configs/fsae.py:paper,stage=2 --config.optim.lr=1e-4`` loads the file, hands it the part
after the colon, and sets single keys. Code reads ``config.a.b`` and nothing else: the defaults
stand in ``vidlatent/config/defaults/``, one file a section.

A config file imports from here and from nowhere else: it starts from ``get_defaults``,
``get_generator_defaults`` or ``load_base("fsae:paper")``, reads its argument with ``parse_arg``,
and returns the config.
"""

from ml_collections import ConfigDict

from vidlatent.config.arguments import check_choice, name_suffix, parse_arg
from vidlatent.config.defaults import get_defaults, get_generator_defaults, is_generator
from vidlatent.config.load import load, load_base, load_defaults, shipped_configs
from vidlatent.config.overrides import apply_overrides, split_overrides
from vidlatent.config.recipes import (
    area_buckets,
    demo_on_samples,
    distil_guidance,
    distil_scores,
    follow_rewards,
    generator_demo,
    halve_steps,
    long_run,
    noise_prediction,
    raise_rewards,
)
from vidlatent.config.roles import ROLES, role_of
from vidlatent.config.store import (
    config_hash,
    describe_data,
    differences,
    find_other_data,
    is_readable,
    name_data,
    read,
    to_json,
    write,
)
from vidlatent.errors import VidlatentError

__all__ = [
    "ROLES",
    "ConfigDict",
    "VidlatentError",
    "apply_overrides",
    "area_buckets",
    "check_choice",
    "config_hash",
    "demo_on_samples",
    "describe_data",
    "differences",
    "distil_guidance",
    "distil_scores",
    "find_other_data",
    "follow_rewards",
    "generator_demo",
    "get_defaults",
    "get_generator_defaults",
    "halve_steps",
    "is_generator",
    "is_readable",
    "load",
    "load_base",
    "load_defaults",
    "long_run",
    "name_data",
    "name_suffix",
    "noise_prediction",
    "parse_arg",
    "raise_rewards",
    "read",
    "split_overrides",
    "role_of",
    "shipped_configs",
    "to_json",
    "write",
]
