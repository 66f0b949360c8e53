"""Released weights that can be read: where their authors publish them, and how they are known.

``RELEASED`` is the one table; ``python -m vidlatent.weights``, docs/weights.md and the messages on
missing or foreign files are made from it. Frozen networks (LPIPS, text encoders, rewards) stand
with their definitions in ``models.pretrained`` and are listed beside it.

No file was fetched to write it: names, places, sizes and licences come from the authors' pages and
code, and ``tried`` says for each row what was compared instead.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

from vidlatent.paths import as_path
from vidlatent.registry import Registry
from vidlatent.weights.importer import count_known
from vidlatent.weights.tables import TABLES

__all__ = [
    "RELEASED",
    "Released",
    "describe_missing",
    "describe_other",
    "list_released",
    "recognise",
]

_LIST = "`python -m vidlatent.weights` lists what can be read"
_HUB = "huggingface.co/"
# By its path, because models come after weights in the order of rooms.
_NETWORKS = Registry("table of frozen networks")
_NETWORKS.register("networks", "vidlatent.models.pretrained:NETWORKS")


@dataclasses.dataclass(frozen=True)
class Released:
    """One set of weights as its authors published it.

    Attributes:
      model: what it is, for people.
      network: ours that reads it, as ``config.model.name`` or ``config.generator.name``; or the
        key of ``config.networks``.
      files: names of the published files.
      where: repository or page.
      licence: as its authors state it; '' if not known to us.
      config: ours of that size; '' where it is read from the file beside the weights.
      command: reads it.
      size: of the files, as listed there, or bytes of the parameters in float32; '' if unknown.
      sha256: of the file; '' if unknown.
      tables: namings under which it is read.
      marks: tensors (name -> shape) of which one tells it from others of the same naming.
      tried: 'not on the real file', and what was compared instead.
    """

    model: str
    network: str
    files: tuple[str, ...]
    where: str
    licence: str
    config: str
    command: str
    size: str = ""
    sha256: str = ""
    tables: tuple[str, ...] = ()
    marks: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    tried: str = "not on the real file"


def _convert(config: str, file: str) -> str:
    """The command that checks a file and makes a workdir of it."""
    out = config.replace(":", "-").replace(",", "-").replace("=", "_")
    return (
        f"python -m vidlatent.main --mode=convert --config={config} --from={file} --to=runs/{out}"
    )


_SMALL = "not on the real file; a small case of"


def _dcae() -> dict[str, Released]:
    rows = {}
    for latent, variants in (
        (32, ("f32c32-sana-1.0", "f32c32-in-1.0", "f32c32-mix-1.0")),
        (128, ("f64c128-in-1.0", "f64c128-mix-1.0")),
        (512, ("f128c512-in-1.0", "f128c512-mix-1.0")),
    ):
        for variant in variants:
            config, file = f"dcae:paper,model={variant}", "diffusion_pytorch_model.safetensors"
            rows[f"dcae-{variant}"] = Released(
                model=f"DC-AE {variant}",
                network="dcae",
                files=(file,),
                where=f"{_HUB}mit-han-lab/dc-ae-{variant}-diffusers",
                licence="Apache-2.0",
                config=config,
                command=_convert(config, file),
                size="1.25 GB" if "sana" in variant else "",
                tables=("dcae", "dcae_original", "dcae_original_shuffle"),
                # -in and -mix have the same shapes, and so has -sana's latent.
                marks={"encoder.conv_out.bias": (latent,)},
                tried=f"{_SMALL} Diffusers' class, names of the full f32c32-sana-1.0",
            )
    return rows


def _ivvae() -> dict[str, Released]:
    rows = {}
    for channels, width in ((4, 64), (8, 64), (16, 64), (16, 96)):
        name = f"ivvae_z{channels}_dim{width}"
        config = f"ivvae:z{channels}" + (",width=96" if width == 96 else "")
        rows[name] = Released(
            model=f"IV-VAE, z = {channels}, width {width}",
            network="ivvae",
            files=(name,),
            where="modelscope.cn/models/wpy1999/iv-vae, linked from github.com/ali-vilab/iv-vae",
            licence="MIT (of the code)",
            config=config,
            command=_convert(config, name + ".pth"),
            tables=("ivvae",),
            marks={"decoder.conv1.conv.weight": (8 * width, channels, 3, 3)},
            tried=f"{_SMALL} the released network, names and shapes of all four files",
        )
    return rows


def _reducio() -> dict[str, Released]:
    rows = {}
    for frames, shape in ((4, (512, 512, 3, 3, 3)), (2, (512, 512, 1, 3, 3))):
        file = f"reducio-ft{frames}-fs32-attn23.ckpt"
        config = "reducio_vae:paper" + ("" if frames == 4 else ",time=2")
        rows[f"reducio-ft{frames}"] = Released(
            model=f"Reducio-VAE, {frames}x32x32",
            network="reducio",
            files=(file,),
            where=f"{_HUB}microsoft/Reducio-VAE",
            licence="MIT",
            config=config,
            command=_convert(config, file),
            tables=("reducio",),
            marks={"encoder_3d.down.3.downsample.conv.weight": shape},
            tried=f"{_SMALL} the released code, names and shapes of both files",
        )
    return rows


def _wan_vae() -> dict[str, Released]:
    rows = {}
    for kind, version, repository, top, channels, size in (
        ("wan21", "2.1", "Wan2.1-T2V-14B", 384, 16, "508 MB"),
        ("wan22", "2.2", "Wan2.2-TI2V-5B", 1024, 48, "2.82 GB in float32"),
    ):
        file, shape = f"Wan{version}_VAE.pth", (top, channels, 3, 3, 3)
        rows[f"{kind}_vae"] = Released(
            model=f"Wan{version}'s VAE",
            network="wan_vae",
            files=(file, "vae/diffusion_pytorch_model.safetensors of the -Diffusers repository"),
            where=f"{_HUB}Wan-AI/{repository}",
            licence="Apache-2.0",
            config=f"wan_vae:{kind}",
            command=_convert(f"wan_vae:{kind}", file),
            size=size,
            tables=("wan_vae", f"wan_vae_diffusers{kind[3:]}"),
            marks={"decoder.conv1.weight": shape, "decoder.conv_in.weight": shape},
            tried=f"{_SMALL} Diffusers' class, parameters counted at the published size",
        )
    return rows


_READ = (
    "from vidlatent.models.generators.released import read_released_config; "
    'build_generator(read_released_config("config.json")), then config.train.init_from=FOLDER'
)


def _wan() -> dict[str, Released]:
    rows = {}
    for name, width, channels in (
        ("T2V-1.3B", 1536, 16),
        ("T2V-14B", 5120, 16),
        ("I2V-14B-480P", 5120, 36),
        ("I2V-14B-720P", 5120, 36),
    ):
        rows[f"wan2.1-{name.lower()}"] = Released(
            model=f"Wan2.1 {name}",
            network="wan",
            files=("diffusion_pytorch_model*.safetensors", "config.json"),
            where=f"{_HUB}Wan-AI/Wan2.1-{name}",
            licence="Apache-2.0",
            config="",
            command=_READ,
            tables=("wan", "wan_diffusers"),
            marks={"patch_embedding.weight": (width, channels, 1, 2, 2)},
            tried=f"{_SMALL} Diffusers' class",
        )
    return rows


def _other_generators() -> dict[str, Released]:
    rows = {}
    rows["cogvideox-5b"] = Released(
        model="CogVideoX-5b",
        network="promag_dit",
        files=("transformer/diffusion_pytorch_model*.safetensors", "transformer/config.json"),
        where=f"{_HUB}THUDM/CogVideoX-5b",
        licence="",
        config="",
        command=_READ,
        tables=("cogvideox_diffusers", "promag_dit"),
        marks={"patch_embed.proj.weight": (3072, 16, 2, 2)},
        tried=f"{_SMALL} Diffusers' class",
    )
    rows["pixart"] = Released(
        model="PixArt-alpha XL/2, 256",
        network="reducio_dit",
        files=("PixArt-XL-2-256x256.pth",),
        where=f"{_HUB}PixArt-alpha/PixArt-alpha",
        licence="",
        config="reducio_dit:paper",
        command="--config.train.init_from=PixArt-XL-2-256x256.pth, in docs/chains.md",
        tables=("pixart",),
        tried=f"{_SMALL} the released code",
    )
    rows["latte"] = Released(
        model="Latte-XL/2 with classes",
        network="latte",
        files=("as listed there",),
        where="github.com/Vchitect/Latte",
        licence="",
        config="latte:paper",
        command="--config=latte:paper --config.train.init_from=FILE",
        tables=("latte",),
    )
    rows["ltx-upsampler"] = Released(
        model="LTX-Video's latent upsampler (its layers; FSVideo trains its own)",
        network="latent_upsampler",
        files=("latent_upsampler/diffusion_pytorch_model.safetensors",),
        where=f"{_HUB}Lightricks/ltxv-spatial-upscaler-0.9.7",
        licence="",
        config="",
        command="read by weights.files.load_params(..., table='latent_upsampler')",
        tables=("latent_upsampler",),
        tried=f"{_SMALL} Diffusers' class",
    )
    return rows


RELEASED: dict[str, Released] = {
    **_wan_vae(),
    **_ivvae(),
    **_dcae(),
    **_reducio(),
    **_wan(),
    **_other_generators(),
}

_VIDEOALIGN = (
    "5,031,072,529 bytes",
    "48375908e6112de9f0248402db156a23b480709a6960b091c598c6f4c88d21b9",
)


def list_released() -> dict[str, Released]:
    """``RELEASED`` and the frozen networks, by name."""
    networks = _NETWORKS.get("networks")
    rows = dict(RELEASED)
    for name in networks.names():
        about = networks.get(name)
        if not about.source:
            continue  # a small stand-in, of which nothing is published
        size, digest = _VIDEOALIGN if name == "videoalign" else ("", "")
        rows[name] = Released(
            model=name,
            network=f"networks.{name}",
            files=about.files,
            where=about.source,
            licence="",
            config="",
            command=f"python -m vidlatent.convert.networks --name={name} "
            f"--from={','.join(about.files)} --to={name}.safetensors",
            size=size,
            sha256=digest,
            tables=about.tables,
        )
    return rows


def recognise(tensors: Mapping[str, Any]) -> list[str]:
    """Names in ``list_released`` whose naming knows most of a file's tensors and whose marks fit.

    Args:
      tensors: anything with a ``shape``, by the file's names.

    Returns:
      One name, several where variants cannot be told apart, none for a file of another kind.
    """
    counts = {name: count_known(tensors, TABLES.get(name)) for name in TABLES.names()}
    most = max(counts.values())
    # A name or two in common say nothing.
    if 2 * most < len(tensors) or not most:
        return []
    best = {name for name, count in counts.items() if count == most}
    rows = {name: row for name, row in list_released().items() if best & set(row.tables)}
    return [name for name, row in rows.items() if _fits(row, tensors)]


def _fits(row: Released, tensors: Mapping[str, Any]) -> bool:
    known = [name for name in row.marks if name in tensors]
    return not known or any(tuple(tensors[name].shape) == row.marks[name] for name in known)


def describe_other(path: str | os.PathLike[str], tensors: Mapping[str, Any], family: str) -> str:
    """One sentence that names the model of a file, if it is another than ``family``; else ''."""
    found = recognise(tensors)
    rows = [list_released()[name] for name in found]
    if not rows or any(row.network.rpartition(".")[2] == family for row in rows):
        return ""
    names = " or ".join(dict.fromkeys(row.model for row in rows))
    known = next((row for row in rows if row.config), rows[0])
    how = f"read it by --config={known.config}" if known.config else f"read it by: {known.command}"
    return f"{path} holds weights of {names}, and the model is {family}: {how}."


def describe_missing(path: str | os.PathLike[str], families: Iterable[str] = ()) -> str:
    """One sentence on a weights file that is not there: where such weights are published.

    Args:
      path: that was named.
      families: networks that were to read it; empty: what the file's name says.
    """
    name, wanted = as_path(path).name, set(families)
    rows = list_released()
    named = [row for row in rows.values() if name in row.files]
    stem = as_path(path).stem
    found = [row for row in named if not wanted or row.network in wanted]
    found = found or [row for key, row in rows.items() if stem == key]
    found = found or [row for row in rows.values() if row.network in wanted]
    if not found:
        return f"no weights file at {path}; {_LIST} and where it is published."
    places = ", ".join(dict.fromkeys(f"{row.files[0]} of {row.where}" for row in found[:2]))
    if len(found) == 1 and found[0].command.startswith("python"):
        return f"no weights file at {path}; published as {places}: {found[0].command}."
    return f"no weights file at {path}; published are {places}; {_LIST}."
