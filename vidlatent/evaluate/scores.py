"""Scores beside PSNR and SSIM, asked for by name.

A score has two halves. ``measure`` is a pure function inside the compiled evaluation step; the
weights of the networks it looks through come in as arguments, since constants of a program cost
memory and compile time. What it returns has one row a clip and comes back whole to every process,
so that the other half, the tally, sums the same rows everywhere: the numbers do not depend on the
number of processes, devices or batches, and rows that are padding never count.

Names in ``config.eval.metrics``:

    lpips_vgg, lpips_alex          LPIPS of every frame
    psnr_reducio, ssim_reducio     as Reducio's evaluation defines them
    lpips_reducio                  LPIPS (VGG) shown pixels in [0, 1], as Reducio's evaluation does
    fvd_i3d, fvd_videomae          Fréchet distance between originals and reconstructions; endings
                                   choose the resize rule (_antialias, _crop: ``metrics.RESIZE``)
                                   and cut clips into pieces of some frames (_cut16)
    is_c3d                         inception score of the reconstructions, and of the originals, in
                                   ``config.eval.is_splits`` parts
    lpips_tiny, fvd_i3d_tiny, fvd_videomae_tiny, is_c3d_tiny    the same through stand-ins

A score is reported under another name, which says the network, whether its weights are random, and
what else defines the number.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.evaluate.tallies import FrechetTally, InceptionTally
from vidlatent.latents.pixels import from_pixels
from vidlatent.metrics import REDUCIO, RESIZE, fvd_features, fvd_name, lpips, lpips_name
from vidlatent.models.pretrained import NETWORKS, Network
from vidlatent.models.pretrained.load import load_network
from vidlatent.registry import did_you_mean

__all__ = ["FrameScore", "Score", "SetScore", "make_scores", "networks_of"]

_VIDEO = {
    "i3d": "i3d_kinetics400",
    "i3d_tiny": "i3d_tiny",
    "videomae": "videomae_g",
    "videomae_tiny": "videomae_tiny",
}
_CLASSIFIERS = {"c3d": "c3d_ucf101", "c3d_tiny": "c3d_tiny"}
_FVD = re.compile(r"fvd_(i3d_tiny|videomae_tiny|i3d|videomae)(?:_(antialias|crop))?(?:_cut(\d+))?")
_STAND_INS = {
    "lpips_vgg": "lpips_tiny",
    "lpips_alex": "lpips_tiny",
    "i3d_kinetics400": "i3d_tiny",
    "videomae_g": "videomae_tiny",
    "c3d_ucf101": "c3d_tiny",
}
_KNOWN = (
    *("lpips_vgg", "lpips_alex", "lpips_tiny", "lpips_reducio", "psnr_reducio", "ssim_reducio"),
    *(f"fvd_{short}" for short in _VIDEO),
    *("fvd_i3d_antialias", "fvd_i3d_crop", "fvd_videomae_crop", "fvd_i3d_cut16"),
    *(f"is_{short}" for short in _CLASSIFIERS),
)


class FrameScore:
    """A value for every frame; clips count alike, each by the mean over its frames.

    Attributes:
      asked: the name in the config.
      name: the name it is reported under.
      network: what it looks through, or None.
      about: its definition, for the result.
    """

    def __init__(
        self,
        asked: str,
        name: str,
        function: Callable[..., jax.Array],
        network: Network | None = None,
        **about: Any,
    ):
        self.asked, self.name, self.network = asked, name, network
        self._function = function
        self.about = {"asked_as": asked, **_origin(network), **about}

    def measure(self, params: Mapping[str, Any], video: jax.Array, restored: jax.Array) -> Any:
        """``[B, T]`` float32 of two videos uint8 ``[B, T, H, W, 3]``."""
        if self.network is None:
            return self._function(video, restored)
        network = self.network._replace(params=params[self.network.name])
        return self._function(network, video, restored)


class SetScore:
    """A number of a whole set of clips, from what a network sees in each.

    Attributes:
      asked, name, network, about: as of ``FrameScore``.
      cut: clips are cut into consecutive pieces of so many frames, none shared and an incomplete
        rest left out; 0: whole.
      tally: makes the object that sums what ``measure`` returns.
    """

    def __init__(
        self,
        asked: str,
        name: str,
        look: Callable[[Network, jax.Array], jax.Array],
        network: Network,
        tally: Callable[[], Any],
        cut: int = 0,
        **about: Any,
    ):
        self.asked, self.name, self.network, self.cut = asked, name, network, cut
        self.tally, self._look = tally, look
        self.about = {"asked_as": asked, **_origin(network), **about}

    def measure(self, params: Mapping[str, Any], video: jax.Array, restored: jax.Array) -> Any:
        """``[2, B, pieces, D]`` float32: of the originals, and of the reconstructions.

        Raises:
          VidlatentError: clips shorter than a piece.
        """
        network = self.network._replace(params=params[self.network.name])
        batch, frames = video.shape[:2]
        length = self.cut or frames
        pieces = frames // length
        if not pieces:
            raise VidlatentError(
                f"{self.asked} looks at {length} frames, and clips of {frames} are scored: score "
                "longer ones (config.data.buckets) or leave it out of config.eval.metrics."
            )

        def seen(clip):
            parts = clip[:, : pieces * length].reshape(batch * pieces, length, *clip.shape[2:])
            return self._look(network, parts).reshape(batch, pieces, -1)

        # One after the other: half the memory, and compiled once.
        return jax.lax.map(seen, jnp.stack([video, restored]))


Score = FrameScore | SetScore


def make_scores(
    names: Sequence[str],
    weights: Mapping[str, str],
    *,
    random_networks: bool = False,
    is_splits: int = 10,
) -> tuple[Score, ...]:
    """The scores of some names, with the weights of their networks read.

    Args:
      names: see the head of this file; several that would be reported alike count once.
      weights: ``config.networks``: network name -> file, or ``random``.
      random_networks: look through the small stand-ins instead of the published networks, to try
        things
        out; the reported names say so.
      is_splits: parts in which an inception score is taken.

    Raises:
      VidlatentError: an unknown name; weights that are missing or do not fit; no part.
    """
    loaded: dict[str, Network] = {}

    def network(name: str) -> Network:
        name = _STAND_INS.get(name, name) if random_networks else name
        if name not in loaded:
            loaded[name] = load_network(name, weights[name])
        return loaded[name]

    scores: dict[str, Score] = {}
    for name in names:
        score = _make(name, network, is_splits)
        scores.setdefault(score.name, score)
    return tuple(scores.values())


def networks_of(scores: Iterable[Score]) -> dict[str, Any]:
    """Parameters of the networks that scores look through, each once: {network: params}."""
    return {s.network.name: s.network.params for s in scores if s.network is not None}


def _origin(network: Network | None) -> dict[str, Any]:
    return {} if network is None else {"network": network.label}


def _make(name: str, network: Callable[[str], Network], is_splits: int) -> Score:
    reducio = {"psnr_reducio": "psnr_reducio_eps1e-8", "ssim_reducio": "ssim_reducio_pooled256"}
    if name in reducio:
        return FrameScore(name, reducio[name], REDUCIO[reducio[name]], pixels="[0, 1]")
    if name in ("lpips_vgg", "lpips_alex", "lpips_tiny", "lpips_reducio"):
        return _lpips(name, network)
    found = _FVD.fullmatch(name)
    if found:
        short, rule, cut = found.groups()
        return _fvd(name, network(_VIDEO[short]), rule or RESIZE[0], int(cut or 0))
    if name.removeprefix("is_") in _CLASSIFIERS:
        return _inception(name, network(_CLASSIFIERS[name.removeprefix("is_")]), is_splits)
    raise VidlatentError(
        f"config.eval.metrics: unknown score {name!r}: {did_you_mean(name, _KNOWN)}"
    )


def _lpips(name: str, network: Callable[[str], Network]) -> FrameScore:
    unit = name == "lpips_reducio"
    through = network("lpips_vgg" if unit else name)

    def function(network, video, restored):
        return lpips(network, video, restored, unit_range=unit)

    pixels = "[0, 1], not rescaled to the network's [-1, 1]" if unit else "[-1, 1]"
    return FrameScore(name, lpips_name(through, unit), function, through, pixels=pixels)


def _fvd(name: str, network: Network, rule: str, cut: int) -> SetScore:
    def look(network, clips):
        return fvd_features(network, clips, rule)

    return SetScore(
        name,
        fvd_name(network, rule) + (f"_cut{cut}" if cut else ""),
        look,
        network,
        FrechetTally,
        cut,
        covariance="biased (divided by n)",
        resize=f"{rule} to {_side(network)}x{_side(network)}",
    )


def _inception(name: str, network: Network, splits: int) -> SetScore:
    frames, side = NETWORKS.get(network.name).inputs[0][1:3]
    tally = functools.partial(InceptionTally, splits)
    tally()  # refuses a number of splits before anything is decoded

    def look(network, clips):
        return network.apply(network.params, from_pixels(clips))["probabilities"]

    return SetScore(
        name,
        f"is_{network.label}",
        look,
        network,
        tally,
        frames,
        resize=f"bilinear, corners aligned, to {side}x{side}",
    )


def _side(network: Network) -> int:
    return NETWORKS.get(network.name).inputs[0][-2]
