"""What a cascade needs on a machine: which networks are in memory when, and the time at best.

Nothing is compiled, and no such machine is needed. Parameters are counted by their shapes and
sharding rules, operations in the traced programs, working memory by ``estimate_peak_bytes``. Times
are lower bounds: a part takes as long as its operations at the data sheet's peak, or as reading its
weights from memory once a step, whichever is longer. Traffic between devices is not counted. Copies
of weights from the host, at the peak of the link, are added to what ``swap`` takes, without the
part of the refiner's that passes during the base model's last steps, where both fit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.codec.memory import count_tree_bytes, estimate_peak_bytes
from vidlatent.data.text.rules import RULES
from vidlatent.errors import VidlatentError
from vidlatent.files import write_json
from vidlatent.latents.channels import follow_latents
from vidlatent.latents.refiner_inputs import abstract_upsampler, read_part, upsampler_of
from vidlatent.latents.space import generator_of, read_tokenizer_config
from vidlatent.models.load import model_of
from vidlatent.models.pretrained import NETWORKS, network_apply, network_shapes
from vidlatent.parallel.mesh import AXES, local_mesh, resolve_sizes
from vidlatent.parallel.sharding import ACTIVATION_AXES, shardings, with_shardings
from vidlatent.paths import as_path
from vidlatent.plan.codec import build_decode, build_encode
from vidlatent.plan.flops import count_flops
from vidlatent.plan.generators import build_sample
from vidlatent.plan.hardware import GIB, Topology, parse_topology
from vidlatent.plan.program import Program
from vidlatent.report.tables import markdown_table
from vidlatent.sample.cascade import cover_sizes
from vidlatent.sample.residency import PLANS, count_device_bytes
from vidlatent.sample.sampler import LatentSampler
from vidlatent.weights.files import is_workdir

__all__ = ["CASCADE", "STAGES", "Part", "describe_parts", "estimate_plans", "plan_cascade"]

CASCADE = "cascade"  # the value of ``config.plan.what``

# Stages of a cascade in their order, and the networks that each has in memory.
STAGES: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "image": ("image",),
    "encode": ("tokenizer",),
    "base": ("base",),
    "upsampler": ("upsampler",),
    "refiner": ("refiner", "tokenizer"),
    "decode": ("refiner", "tokenizer"),
}
# With ``swap``, stages in which the refiner is there ahead of its own, if it fits.
_AHEAD = ("base", "upsampler")
_AHEAD_SHARE = 0.5  # of the base model's steps, see ``sample.cascade``

_AT_WORK = {"encode": "tokenizer", "decode": "tokenizer"}  # stages named unlike their network


@dataclasses.dataclass(frozen=True)
class Part:
    """What one stage does, for one video on one device.

    Attributes:
      flops: operations of all its calls.
      working: bytes beside the parameters, of the call that needs most; an estimate.
      reads: how often its weights are read from memory.
      branches: samples of a call (branches of guidance), which ``data`` and ``fsdp`` divide.
      tokens: of a sample, which ``context`` divides; 0 for what runs on one device.
      evaluations: of a generator's network.
    """

    flops: float
    working: float
    reads: int = 1
    branches: int = 1
    tokens: int = 0
    evaluations: int = 0

    def ways(self, mesh: AbstractMesh) -> int:
        """Among how many devices its work is divided."""
        if not self.tokens:
            return 1
        rows = math.prod(mesh.shape[axis] for axis in ACTIVATION_AXES["batch"])
        context = mesh.shape["context"]
        divided = rows if self.branches % rows == 0 else 1
        divided *= context if self.tokens % context == 0 else 1
        return divided * mesh.shape["tensor"]


def plan_cascade(config: ConfigDict, workdir: Path, topologies: str, output: str) -> int:
    """Print peak and time of each plan of the refiner's cascade, and write them as JSON.

    Args:
      config: of a refiner, or of a base model whose ``config.sample.refine`` names one.
      workdir: of the file, unless ``output`` names it: ``<workdir>/plan/cascade.json``.
      topologies: one or several with commas, such as ``h100:1,h200:1,v5p:2x2x1``.

    Returns:
      The exit status: 0 if a plan fits every machine, and 3 if none fits one of them.
    """
    machines = [parse_topology(text) for text in topologies.split(",")]
    if configs.role_of(config) == "generator" and config.sample.refine:
        config = _read_refiner(config, workdir)
    parts, params = describe_parts(config)
    rows = []
    for where in machines:
        rows += estimate_plans(config, where, parts, params)
    target = as_path(output or workdir / "plan" / f"{CASCADE}.json").resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "estimate": True,
        "size": list(config.sample.size),
        "parts": {name: dataclasses.asdict(part) for name, part in parts.items()},
        "parameter_bytes": {name: count_tree_bytes(tree) for name, tree in params.items()},
        "plans": rows,
    }
    write_json(target, result)
    print(format_cascade(result))
    logging.info("wrote %s", target)
    found = {row["topology"] for row in rows if row["fits"]}
    return 0 if found == {row["topology"] for row in rows} else 3


def _read_refiner(base: ConfigDict, workdir: Path) -> ConfigDict:
    """The config of ``base.sample.refine`` after the base model in ``workdir``, as for sampling."""
    if not is_workdir(base.sample.refine):
        raise VidlatentError(
            f"config.sample.refine={base.sample.refine} is no run with checkpoints: name the "
            "workdir of a refiner."
        )
    config = configs.read(as_path(base.sample.refine))
    with config.unlocked():
        config.plan, config.mesh = base.plan, base.mesh
        if configs.role_of(config) == "refiner":
            config.refiner.base = str(workdir)
    return config


# What each part does.


def describe_parts(config: ConfigDict) -> tuple[dict[str, Part], dict[str, Any]]:
    """Stages by name, and abstract parameters of the networks by name.

    Raises:
      VidlatentError: the config is no refiner's, or names no tokenizer.
    """
    base, upsampler, tokenizer = _read_configs(config)
    model = model_of(tokenizer)
    spec = model.latent_spec
    size = tuple(config.sample.size) or tuple(config.data.buckets[-1][:3])
    models = [generator_of(follow_latents(found, spec)) for found in (base, config)]
    sides = cover_sizes(size, spec, *models)
    low, high = ((size[0], *sides[name]) for name in ("low", "high"))
    parts, params = {}, {}
    for name, found, shape in (("base", base, low), ("refiner", config, high)):
        parts[name], params[name] = _describe_generator(found, shape, spec)
    network = upsampler_of(follow_latents(upsampler, spec), jnp.bfloat16)
    params["upsampler"] = abstract_upsampler(network)
    parts["upsampler"] = _describe_upsampler(network, params["upsampler"], spec.latent_shape(low))
    programs = (
        [
            (build_encode(tokenizer, local_mesh([1]), (1, *shape[1:], 1)), 1)
            for shape in (low, high)
        ],
        [(build_decode(tokenizer, local_mesh([1]), (*high, 1)), size[0])],
    )
    params["tokenizer"] = programs[1][0][0].parts["parameters"]
    for name, calls in zip(("encode", "decode"), programs, strict=True):
        parts[name] = _join([_count(program, frames) for program, frames in calls])
    for name in ("text", "image"):
        if name in models[0].reads:
            parts[name], params[name] = _describe_encoder(config, name, models[0], high)
    return {name: parts[name] for name in STAGES if name in parts}, params


def _read_configs(config: ConfigDict) -> tuple[ConfigDict, ConfigDict, ConfigDict]:
    """Configs of base model, upsampler and tokenizer: of runs, or as ``config.plan`` names them."""
    if configs.role_of(config) != "refiner":
        raise VidlatentError(
            f"config.plan.what={CASCADE} plans a refiner with what stands before it, and "
            f"{config.name} is of the task {config.task!r}: use --config=configs/fsvideo_refiner.py"
            ":paper,stage=target, --workdir=REFINER, or a base model with "
            "--config.sample.refine=REFINER."
        )
    found = []
    for name in ("base", "upsampler"):
        run = bool(config.refiner[name])
        found.append(read_part(config, name) if run else configs.load(config.plan[name]))
    if config.plan.tokenizer:
        tokenizer = configs.load(config.plan.tokenizer)
    elif config.tokenizer.path:
        tokenizer = read_tokenizer_config(config)
    else:
        raise VidlatentError(
            "config.plan.tokenizer is empty: name the config of the tokenizer that decodes, such "
            "as fsae:standard or fsae:lite."
        )
    for part in found:
        with part.unlocked():
            part.plan.tokenizer, part.tokenizer.path = config.plan.tokenizer, config.tokenizer.path
    for part in (*found, tokenizer):
        with part.unlocked():
            part.precision.compute = "bfloat16"
    return found[0], found[1], tokenizer


def _describe_generator(config: ConfigDict, size: tuple[int, ...], spec: Any) -> tuple[Part, Any]:
    """All steps for one video of this size."""
    found = config.copy_and_resolve_references()
    with found.unlocked():
        found.plan.bucket, found.precision.compute = (*size, 1), "bfloat16"
    program = build_sample(found, local_mesh([1]), (*size, 1))
    flops, working = _count(program, program.frames)
    model = generator_of(follow_latents(found, spec))
    shape = spec.latent_shape(size)
    sampler = LatentSampler(model, found, shape)
    joined = len(sampler.drops) if found.sampler.guidance.batched else 1
    tokens = math.prod(shape[:3]) // math.prod(model.patch)
    steps = sampler.nfe // joined
    return Part(flops, working, steps, joined, tokens, sampler.nfe), program.parts["parameters"]


def _describe_upsampler(network: Any, params: Any, shape: Sequence[int]) -> Part:
    """The base model's sample, and its first frame for the mask."""

    def run(params, latent):
        return network.apply({"params": params}, latent)

    calls = []
    for frames in (shape[0], 1):
        latent = jax.ShapeDtypeStruct((1, frames, *shape[1:]), jnp.float32)
        traced = jax.make_jaxpr(run)(params, latent)
        calls.append((count_flops(traced), estimate_peak_bytes(traced)))
    return _join(calls)


def _describe_encoder(
    config: ConfigDict, name: str, model: Any, size: Sequence[int]
) -> tuple[Part, Any]:
    """One prompt, or one picture. Texts keep their file's two bytes a number."""
    network = config.encode[name]
    if name == "text":
        rule = RULES.get(config.encode.text)
        network = config.encode.text_network or (rule.network if rule else "")
    if not network:
        raise VidlatentError(
            f"config.encode.{name} is empty: name what encodes the {name} of the base model."
        )
    params = network_shapes(network)
    if NETWORKS.get(network).keeps_dtype:
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
    if name == "text":
        shape = (1, model.text_length)
        inputs = [jax.ShapeDtypeStruct(shape, kind) for kind in (jnp.int32, jnp.bool_)]
    else:
        inputs = [jax.ShapeDtypeStruct((1, *size[1:], 3), jnp.float32)]
    traced = jax.make_jaxpr(network_apply(network, jnp.bfloat16))(params, *inputs)
    return Part(count_flops(traced), estimate_peak_bytes(traced)), params


def _count(program: Program, frames: float) -> tuple[float, float]:
    """Operations for so many frames, and the working memory of a call."""
    with jax.set_mesh(local_mesh([1])):
        traced = jax.make_jaxpr(program.function)(*program.arguments)
    # What is carried between calls, such as caches, and inputs are arguments beside the parameters.
    held = count_tree_bytes(program.arguments) - count_tree_bytes(program.parts["parameters"])
    calls = frames / program.frames
    return calls * count_flops(traced), held + estimate_peak_bytes(traced)


def _join(calls: Sequence[tuple[float, float]]) -> Part:
    return Part(sum(flops for flops, _ in calls), max(working for _, working in calls), len(calls))


# What they come to on a machine.


def estimate_plans(
    config: ConfigDict, topology: Topology, parts: dict[str, Part], params: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each plan of residency on this machine, with ``config.mesh`` over its devices."""
    sizes = resolve_sizes(config.mesh, topology.devices)
    mesh = AbstractMesh(sizes, AXES)
    held = {name: _count_on_device(name, tree, mesh) for name, tree in params.items()}
    hardware = topology.hardware
    limit = config.plan.memory_gib * GIB or hardware.memory
    seconds = {
        stage: _bound(part, part.ways(mesh), held[_AT_WORK.get(stage, stage)], hardware)
        for stage, part in parts.items()
    }
    rows = []
    for plan in PLANS:
        ahead = plan == "swap" and _find_peak(plan, parts, held, mesh, ahead=True) <= limit
        peak = _find_peak(plan, parts, held, mesh, ahead=ahead)
        copied = _count_copies(plan, parts, held)
        copies = None if copied and not hardware.host else copied / (hardware.host or 1.0)
        if ahead and copies is not None:
            meanwhile = _AHEAD_SHARE * seconds.get("base", 0.0)
            copies -= min(held["refiner"] / (hardware.host or 1.0), meanwhile)
        total = sum(seconds.values()) + (copies or 0.0)
        rows.append(
            {
                "topology": str(topology),
                "mesh": dict(zip(AXES, sizes, strict=True)),
                "plan": plan,
                "refiner_ahead": ahead,
                "peak": peak,
                "limit": limit if math.isfinite(limit) else None,
                "fits": peak <= limit,
                "parameters": held,
                "seconds": seconds if hardware.flops else None,
                "copied": copied,
                "copy_seconds": copies,
                "at_least": total if hardware.flops else None,
            }
        )
    return rows


def _count_on_device(name: str, tree: Any, mesh: AbstractMesh) -> int:
    """Generators and upsampler are divided by the rules; encoders and tokenizer are on one."""
    if name not in ("base", "refiner", "upsampler"):
        return count_tree_bytes(tree)
    return count_device_bytes(with_shardings(tree, shardings(tree, mesh)))


def _bound(part: Part, ways: int, weights: float, hardware: Any) -> float:
    if not hardware.flops:
        return 0.0
    return max(part.flops / ways / hardware.flops, part.reads * weights / hardware.bandwidth)


def _find_peak(
    plan: str, parts: dict[str, Part], held: dict[str, int], mesh: AbstractMesh, *, ahead: bool
) -> float:
    """Most bytes of a device; ``ahead``: the refiner is there while the base model still draws."""

    def need(stage: str) -> float:
        names = list(held) if plan == "keep" else list(STAGES[stage])
        names += ["refiner"] * (ahead and stage in _AHEAD)
        return sum(held[name] for name in names) + parts[stage].working / parts[stage].ways(mesh)

    return max(need(stage) for stage in parts)


def _count_copies(plan: str, parts: dict[str, Part], held: dict[str, int]) -> float:
    """Bytes that a device is sent for one video: with ``keep`` networks are there already."""
    if plan == "keep":
        return 0.0
    copied = 0.0
    before: tuple[str, ...] = ()
    for stage in parts:
        copied += sum(held[name] for name in STAGES[stage] if name not in before)
        before = STAGES[stage]
    return copied


# The page.


def format_cascade(result: dict[str, Any]) -> str:
    """What fits first, then the tables of plans and of parts."""
    plans, parts = result["plans"], result["parts"]
    texts = [_answer(plans)]
    texts.append(
        "Estimates: memory from shapes and traced programs, times at the data sheets' peaks. "
        "Nothing was compiled or run, traffic between devices is not counted, and a real machine "
        "is slower."
    )
    texts.append(markdown_table([_plan_row(row) for row in plans], aligned=True))
    rows = [
        {
            "part": name,
            "in memory": ", ".join(STAGES[name]),
            "evaluations": part["evaluations"] or None,
            "TFLOP": f"{part['flops'] / 1e12:.4g}",
            "working GB": f"{part['working'] / 1e9:.3g}",
        }
        for name, part in parts.items()
    ]
    texts.append(markdown_table(rows, aligned=True))
    sizes = result["parameter_bytes"].items()
    texts.append("Parameters, GB: " + ", ".join(f"{n} {size / 1e9:.3g}" for n, size in sizes) + ".")
    return "\n\n".join(texts)


def _answer(plans: Sequence[dict[str, Any]]) -> str:
    lines = []
    for name in dict.fromkeys(row["topology"] for row in plans):
        own = {row["plan"]: row for row in plans if row["topology"] == name}
        fitting = [plan for plan in ("keep", "swap") if own[plan]["fits"]]
        if not fitting:
            least = min(row["peak"] for row in own.values())
            lines.append(f"{name}: no plan fits; the least is {least / 1e9:.1f} GB a device.")
            continue
        row = own[fitting[0]]
        took = "" if row["at_least"] is None else f", at least {row['at_least']:.2f} s a video"
        ahead = ", the refiner copied during the base model's last steps"
        how = ahead * row["refiner_ahead"]
        lines.append(
            f"{name}: {fitting[0]} fits with {row['peak'] / 1e9:.1f} GB a device{how}{took}."
        )
    return "\n".join(lines)


def _plan_row(row: dict[str, Any]) -> dict[str, Any]:
    def write(value, digits=".2f"):
        return None if value is None else format(value, digits)

    seconds = row["seconds"] or {}
    axes = [f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1]
    return {
        "machine": row["topology"],
        "mesh": ", ".join(axes) or "one device",
        "plan": row["plan"] + ", ahead" * row["refiner_ahead"],
        "peak GB": write(row["peak"] / 1e9, ".1f"),
        "of": write(row["limit"] and row["limit"] / 1e9, ".1f"),
        "fits": "yes" if row["fits"] else "no",
        "base s": write(seconds.get("base")),
        "refiner s": write(seconds.get("refiner")),
        "other s": write(
            sum(v for k, v in seconds.items() if k not in ("base", "refiner")) if seconds else None
        ),
        "copies s": write(row["copy_seconds"]),
        "at least s": write(row["at_least"]),
    }
