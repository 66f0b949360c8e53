"""Checks every value of a config, in one place, before anything is compiled or written.

Which values a key may have stands in ``config/ranges.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from vidlatent.config.defaults import get_defaults, get_generator_defaults, is_generator
from vidlatent.config.ranges import FIELDS, GROUPS, RULES, SHIPPED
from vidlatent.errors import VidlatentError

__all__ = ["check_complete", "validate"]


def validate(config: ConfigDict) -> None:
    """Raise ``VidlatentError`` for the first value that its key cannot have."""
    for key, value in _leaves(config, ""):
        rule = RULES.get(key) or _rule_of_group(config, key)
        if remedy := (rule(value) if rule else _finite(value)):
            raise VidlatentError(f"config.{key}={value!r}: {remedy}{_hint(key, value)}.")
    for check in (
        _check_weights,
        _check_chunks,
        _check_windows,
        _check_shares,
        _check_name,
        _check_start,
        _check_guidance_distilled,
        _check_dropout,
        _check_stages,
        _check_histograms,
    ):
        if problem := check(config):
            raise VidlatentError(f"{problem}.")


def check_complete(config: ConfigDict, path: str) -> None:
    """Raise ``VidlatentError`` if keys are missing: a config starts from the defaults."""
    defaults = get_generator_defaults if is_generator(config) else get_defaults
    present = {key for key, _ in _leaves(config, "", groups=True)}
    missing = [k for k, _ in _leaves(defaults("", ""), "", groups=True) if k not in present]
    # Groups first: a missing group says more than each of its keys.
    missing.sort(key=lambda key: key.count("."))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise VidlatentError(
            f"--config={path}: the config lacks {', '.join(missing[:3])}{more}: start from "
            f"vidlatent.config.{defaults.__name__}(name, preset) or load_base('fsae:demo')."
        )


def _leaves(node: ConfigDict, prefix: str, groups: bool = False) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, ConfigDict):
            if groups:
                yield prefix + key, value
            yield from _leaves(value, f"{prefix}{key}.", groups)
        else:
            yield prefix + key, value


def _rule_of_group(config: ConfigDict, key: str) -> Any:
    for group, rule in GROUPS.items():
        if key.startswith(f"{group}."):
            if group in SHIPPED and config[group].get("name", "") in SHIPPED[group]:
                # These rules are of our own models; others may use the names in another way.
                return FIELDS.get(key.removeprefix(f"{group}."))
            return rule
    return None


def _finite(value: Any) -> str:
    if isinstance(value, tuple):
        return next(filter(None, map(_finite, value)), "")
    return "give a finite number" if isinstance(value, float) and not math.isfinite(value) else ""


def _hint(key: str, value: Any) -> str:
    """The commonest slip: one bucket where a tuple of buckets belongs."""
    if key == "data.buckets" and isinstance(value, tuple) and len(value) == 4:
        if not any(isinstance(part, tuple) for part in value):
            return "; one bucket alone is written with a comma, ((frames, height, width, batch),)"
    return ""


def _check_weights(config: ConfigDict) -> str:
    weights, buckets = config.data.bucket_weights, config.data.buckets
    if weights and len(weights) != len(buckets):
        return (
            f"config.data.bucket_weights has {len(weights)} numbers for the {len(buckets)} of "
            "config.data.buckets: give one for each, or () for equal shares"
        )
    if weights and not any(weights):
        return "config.data.bucket_weights are all 0: give one bucket at least a share"
    if weights or not (shares := dict(config.data.length_weights)):
        return ""
    lacking = sorted({bucket[0] for bucket in buckets} - set(shares))
    if lacking:
        return (
            f"config.data.length_weights has no share for the {lacking[0]} frames of "
            "config.data.buckets: give a (frames, share) for each length, or () for equal shares"
        )
    if buckets and not any(shares[bucket[0]] for bucket in buckets):
        return "config.data.length_weights are all 0: give one length at least a share"
    return ""


def _check_chunks(config: ConfigDict) -> str:
    sections = ("encode", "tokenizer") if is_generator(config) else ("encode",)
    for section in sections:
        chunks = config[section].chunks
        if chunks and chunks[1] >= chunks[0]:
            return (
                f"config.{section}.chunks={chunks!r}: chunks of {chunks[0]} frames cannot share "
                f"{chunks[1]}; give a smaller overlap"
            )
    return ""


def _check_windows(config: ConfigDict) -> str:
    encode = config.encode
    if encode.windows != "random" and encode.windows_per_clip != 1:
        return (
            f"config.encode.windows_per_clip={encode.windows_per_clip} does nothing while windows "
            f"is {encode.windows!r}: set config.encode.windows=random, or leave it out"
        )
    return ""


def _check_shares(config: ConfigDict) -> str:
    index, count = config.encode.process_index, config.encode.process_count
    if count and index >= count:
        return (
            f"config.encode.process_index={index} of config.encode.process_count={count}: indices "
            f"go from 0 to {count - 1}"
        )
    if is_generator(config) and len(interval := config.sampler.guidance.interval):
        if interval[0] >= interval[1]:
            return f"config.sampler.guidance.interval={interval!r}: give the lower level first"
    return ""


def _check_name(config: ConfigDict) -> str:
    """``runs/<name>-<preset>`` is the default workdir."""
    for key in ("name", "preset"):
        if {"/", "\\"} & set(config[key]) or config[key] in (".", ".."):
            return f"config.{key}={config[key]!r} is part of a folder's name: leave out slashes"
    return ""


def _check_start(config: ConfigDict) -> str:
    """Shuffled channels are filled in the order that the kind of start stands for."""
    orders = {"image": "hwt", "image_thw": "thw"}
    kind, model = config.train.init_kind, config.get("model", {})
    order = model.get("shortcut_order", "hwt")
    if kind in orders and model.get("up_type") == "shuffle" and order != orders[kind]:
        named = {order: other for other, order in orders.items()}.get(order, "'' (random weights)")
        return (
            f"config.train.init_kind={kind!r} fills shuffling operations in the order "
            f"{orders[kind]!r}, but config.model.shortcut_order={order!r}: set init_kind to {named}"
        )
    return ""


def _check_histograms(config: ConfigDict) -> str:
    """TensorBoard alone has a place for them."""
    if config.train.histograms and not config.train.tensorboard:
        return (
            f"config.train.histograms={config.train.histograms} are written for TensorBoard, and "
            "config.train.tensorboard=False: set it to true, or histograms to 0"
        )
    return ""


def _check_guidance_distilled(config: ConfigDict) -> str:
    """A student has one scale, or a range of them."""
    if config.task != "distill_guidance":
        return ""
    distill = config.distill
    if bool(distill.scales) == bool(distill.scale_range):
        return (
            f"config.distill.scales={distill.scales!r} and scale_range={distill.scale_range!r}: "
            "give the guidance scale that is built in, such as (5.0,), or a range of them, such as "
            "(1.0, 7.0)"
        )
    if distill.scale_range and distill.scale_range[0] >= distill.scale_range[1]:
        return f"config.distill.scale_range={distill.scale_range!r}: give the lesser scale first"
    return ""


def _check_dropout(config: ConfigDict) -> str:
    """Only one task has layers that apply it; elsewhere it would be without effect."""
    for key, value in _leaves(config, ""):
        read = config.task == "reward" and key == "optim.lora.dropout"
        if key.endswith("lora.dropout") and value and not read:
            return f"config.{key}={value} is of the task 'reward' alone: set it to 0"
    return ""


def _check_stages(config: ConfigDict) -> str:
    """Each stage halves the steps of the one before."""
    if config.task != "distill_progressive":
        return ""
    stages, steps = config.distill.stages, config.train.steps
    if not stages or any(2 * b != a for a, b in zip(stages, stages[1:], strict=False)):
        return (
            f"config.distill.stages={stages!r}: give the steps of the student in each stage, each "
            "half of those before, such as (32, 16, 8)"
        )
    if steps % len(stages):
        return (
            f"config.train.steps={steps} for {len(stages)} stages (config.distill.stages): give a "
            "multiple of their number, as all have equally many"
        )
    if config.distill.scales or config.distill.scale_range:
        return (
            "config.distill.scales and scale_range are of the task distill_guidance: steps are "
            "halved with the guidance that the teacher has built in; set them to ()"
        )
    return ""
