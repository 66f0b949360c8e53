"""The modes ``compress`` and ``decompress``: a video to a compressed file and back."""

from __future__ import annotations

from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from vidlatent.codec.codec import Codec
from vidlatent.codec.compress import compress, describe
from vidlatent.codec.options import CodecOptions
from vidlatent.codec.packed import PackedVideo, unpack
from vidlatent.codec.progress import FrameProgress
from vidlatent.errors import VidlatentError
from vidlatent.files import replace_file
from vidlatent.media.errors import ClipError
from vidlatent.media.sound import unpack_sound
from vidlatent.media.write import VideoWriter
from vidlatent.paths import as_path, same_place

__all__ = ["compress_video", "decompress_video", "write_decompressed"]


def compress_video(config: ConfigDict, workdir: Path, step: int, input: str, output: str) -> int:
    """Write a video as a compressed file; the log tells its size and what that means."""
    _check_names(input, output)
    codec = _open(config, workdir, step)
    data, figures = compress(codec, input, dtype=config.compress.dtype, coder=config.compress.coder)
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


def decompress_video(config: ConfigDict, workdir: Path, step: int, input: str, output: str) -> int:
    """Write the video of a compressed file."""
    _check_names(input, output)
    # Read before the tokenizer, which takes longer.
    packed = unpack(input)
    told = write_decompressed(_open(config, workdir, step), packed, output)
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


def _open(config: ConfigDict, workdir: Path, step: int) -> Codec:
    options = CodecOptions.of(**config.codec)
    return Codec.from_workdir(workdir, None if step < 0 else step, options)


def _check_names(input: str, output: str) -> None:
    if same_place(input, output):
        raise VidlatentError(f"--output={output} would overwrite the input: choose another name.")
