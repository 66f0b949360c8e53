"""The modes ``compress`` and ``decompress``: a video to a compressed file and back."""

from __future__ import annotations

from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from vidlatent.codec.codec import Codec
from vidlatent.codec.compress import compress, describe
from vidlatent.codec.load import open_carried, open_codec
from vidlatent.codec.packed import PackedVideo, unpack
from vidlatent.codec.progress import FrameProgress
from vidlatent.errors import VidlatentError
from vidlatent.files import replace_file
from vidlatent.media.errors import ClipError
from vidlatent.media.sound import unpack_sound
from vidlatent.media.write import VideoWriter
from vidlatent.paths import as_path, same_place

__all__ = ["compress_video", "decompress_video", "write_decompressed"]


def compress_video(
    config: ConfigDict, workdir: Path, step: int, input: str, output: str, **weights: str
) -> int:
    """Write a video as a compressed file; the log tells its size and what that means.

    ``weights`` are the flags ``from`` and ``from_table`` (``codec.load.open_codec``).
    """
    _check_names(input, output)
    codec = open_codec(config, workdir, step, **weights)
    how = config.compress
    data, figures = compress(codec, input, dtype=how.dtype, coder=how.coder, weights=how.weights)
    as_path(output).parent.mkdir(parents=True, exist_ok=True)
    with replace_file(output) as file:
        file.write(data)
    logging.info("%(frames)d frames of %(width)dx%(height)d", figures)
    for sentence in describe(figures):
        logging.info("%s", sentence)
    for sentence in figures["told"]:
        logging.warning("%s: %s", input, sentence)
    logging.info("wrote %s", output)
    return 0


def decompress_video(
    config: ConfigDict, workdir: Path, step: int, input: str, output: str, **weights: str
) -> int:
    """Write the video of a compressed file; arguments as of ``compress_video``.

    A ``config`` without a model, as of a command with neither ``--workdir`` nor ``--config``, is
    that of a file which holds its decoder.
    """
    _check_names(input, output)
    # Read before the tokenizer, which takes longer.
    packed = unpack(input)
    codec = open_codec(config, workdir, step, **weights) if config.model else open_carried(packed)
    told = write_decompressed(codec, packed, output)
    coded = packed.coded
    logging.info(
        "%d frames of %dx%d, %.3f a second%s",
        *(coded.frames, coded.size[1], coded.size[0], packed.fps, told and f"; sound {told}"),
    )
    logging.info("wrote %s", output)
    return 0


def write_decompressed(codec: Codec, packed: PackedVideo, output: str | Path) -> str:
    """Write a video file with the rate, the times and the sound of what was compressed.

    Args:
      codec: whose encoder coded it.
      packed: what ``unpack`` read.
      output: name of the video file.

    Returns:
      What became of the sound, in words; '' if there is none.

    Raises:
      VidlatentError: another encoder coded it, or the video cannot be written.
    """
    coded, sound = packed.coded, unpack_sound(packed.sound, packed.origin)
    done = 0
    try:
        with (
            VideoWriter(output, packed.fps, timed=coded.times is not None, sound=sound) as writer,
            FrameProgress("decompress", coded.frames) as progress,
        ):
            for piece in codec.decode_stream([coded]):
                for number, frame in enumerate(piece, done):
                    writer.add(frame, None if coded.times is None else coded.times[number])
                done += len(piece)
                progress.advance(len(piece))
    except ClipError as error:
        raise VidlatentError(f"the sound cannot be written to {output}: {error}.") from error
    return sound.told


def _check_names(input: str, output: str) -> None:
    if same_place(input, output):
        raise VidlatentError(f"--output={output} would overwrite the input: choose another name.")
