"""Where FSAE can be cut, and how far a cut spoils what is computed from a part (FSVideo 2.2.1).

The inner stages attend over the whole frame, and cost little; the outer ones are convolutions with
norms of a position's own channels, so a crop decodes correctly except near its cut sides. Nothing
is spoilt at the true border of the frame: the zeros that convolutions see there are those that they
see in the whole frame.

A *cell* is one position of the inner stages' output: 8x8 pixels in the published model, where cut
sides spoil 50 pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vidlatent.errors import VidlatentError

if TYPE_CHECKING:
    from vidlatent.models.tokenizers.fsvideo.model import Autoencoder

__all__ = [
    "Reach",
    "compute_decoder_reach",
    "find_encoder_end",
    "compute_encoder_reach",
    "has_outer_stages",
    "find_outer_stage",
    "compute_tile_margins",
    "compute_window_margins",
]


class Reach(NamedTuple):
    """How far a cut spoils what is computed from a part.

    Attributes:
      space: pixels (of the end result) from a cut side.
      left, right: frames from a cut start or end. The first cell frame of a part that does not
        start the clip counts as a clip's first frame, i.e. for one frame only.
    """

    space: int
    left: int
    right: int


def find_outer_stage(model: Autoencoder) -> int:
    """The stage after which (going out) there is no attention: 3 in the published model."""
    kinds = model.decoder_block_types or model.block_types
    stage = next((i for i, kind in enumerate(kinds) if kind == "evit"), len(kinds) - 1)
    if stage == 0:
        raise VidlatentError("this model attends at full resolution: it has no stages to cut.")
    return stage


def has_outer_stages(model: Autoencoder) -> bool:
    """Whether both sides have stages without attention, which every way of cutting needs."""
    try:
        return find_outer_stage(model) > 0 and find_encoder_end(model) >= 0
    except VidlatentError:
        return False


def compute_decoder_reach(model: Autoencoder, begin: int | None = None, end: int = -1) -> Reach:
    """Reach of a cut of block ``begin``'s output (None: of the latent) into block ``end``'s.

    ``end`` -1 is the video. An up operation followed by k convolutions turns a reach of m into
    ``2 m + k``.
    """
    kinds = model.decoder_block_types or model.block_types
    last = len(kinds) - 1
    # From the latent, conv_in comes first and reaches one position by itself.
    space, left, right = (0, 0, 0) if begin is not None else (1, 1, 1)
    # Frames that one convolution reaches back and ahead. Inside its group a frame looks ahead too,
    # but a cut never falls inside a group.
    early, late = {"causal": (2, 0), "centred": (1, 1), "group": (1, 0)}[model.decoder_time]
    if model.temporal_kernel == 1:
        early = late = 0
    if begin is None:
        left, right = early, late
    for stage in range(last if begin is None else begin - 1, max(end, 0) - 1, -1):
        depth = model.decoder_depths[stage]
        # An attention block has one convolution over time, the depthwise one.
        convs = depth * (2 if kinds[stage] == "res" else 1)
        if stage < last:
            shuffled = model.up_type == "shuffle"
            # A shuffling operation convolves before it doubles.
            space = 2 * (space + 1) if shuffled else 2 * space + 1
            if stage in model.temporal_down:
                # A part's first frame is not doubled: one frame less on the left.
                left = 2 * (left + early * shuffled) - (left > 0)
                right = 2 * (right + late * shuffled)
            # The convolution of a shuffle in time was counted above, at the lower frame rate.
            convs_in_time = convs + (not (shuffled and stage in model.temporal_down))
        else:
            convs_in_time = convs
        space += convs
        left, right = left + early * convs_in_time, right + late * convs_in_time
    if end < 0 and model.decoder_depths[0]:
        space, left, right = space + 1, left + early, right + late
    return Reach(space, left, right)


def find_encoder_end(model: Autoencoder) -> int:
    """The last encoder block before any attention."""
    kinds = model.block_types
    end = next((i for i, kind in enumerate(kinds) if kind == "evit"), len(kinds) - 1) - 1
    if end < 0:
        raise VidlatentError("this model attends at full resolution: it has no stages to cut.")
    return end


def compute_encoder_reach(model: Autoencoder, end: int) -> int:
    """Pixels from a cut side within which the output of encoder block ``end`` is wrong."""
    # conv_in reads one pixel beyond a cut.
    reach, scale = 1, 1
    if model.encoder_depths[0] == 0:
        scale = 2
    for stage in range(end + 1):
        depth = model.encoder_depths[stage]
        if depth:
            # Two convolutions a block and one in the down operation, in pixels of this stage.
            reach += scale * (2 * depth + 1)
            scale *= 2
    return reach


def compute_tile_margins(model: Autoencoder) -> tuple[tuple[int, int], tuple[int, int]]:
    """``(cell side, margin)`` in pixels of the decoder's tiles and of the encoder's.

    The margin is what cut sides spoil, up to whole cells.

    Raises:
      VidlatentError: the model attends at full resolution.
    """
    stage, end = find_outer_stage(model), find_encoder_end(model)
    pairs = (
        (2**stage, compute_decoder_reach(model, stage).space),
        (2 ** (end + 1), compute_encoder_reach(model, end)),
    )
    return tuple((cell, -(-reach // cell) * cell) for cell, reach in pairs)


def compute_window_margins(model: Autoencoder) -> tuple[int, int, Reach]:
    """How much of the clip the video of a window depends on.

    Returns:
      Latent frames before and after the window that the outer stages need, and the reach of the
      inner stages around these.


    Raises:
      VidlatentError: time is doubled in the inner stages, too.
    """
    stage = find_outer_stage(model)
    if any(i >= stage for i in model.temporal_down):
        raise VidlatentError("windows need all temporal down operations in the outer stages.")
    step = model.latent_spec.t
    outer = compute_decoder_reach(model, stage)
    # A part's first latent frame makes one frame only, so b latent frames before the window make
    # step * b - (step - 1) frames.
    before = -(-(outer.left + step - 1) // step)
    return before, -(-outer.right // step), compute_decoder_reach(model, None, stage)
