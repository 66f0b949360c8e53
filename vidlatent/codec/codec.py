"""Videos to latents and back, a piece at a time.

A causal tokenizer codes a stream exactly: every temporal convolution keeps its last input frames,
and those caches travel from piece to piece as values. So a video of any length passes through with
the memory of one piece, and comes out as if it had been coded whole. Decoders that look ahead work
in windows, with the same result. Tokenizers that need the whole clip, and others on request, work
in chunks, which fade into each other over the frames they share (ProMAG, appendix D).

Sizes: height and width are padded to the tokenizer's multiples by repeating the last row and
column, the length to the next legal one by repeating the last frame; decoding cuts both off again.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vidlatent import config as configs
from vidlatent.codec.carried import Carried, carry, unfold
from vidlatent.codec.coded import Coded, Reader
from vidlatent.codec.compress import compress
from vidlatent.codec.options import CodecOptions, plan_codec
from vidlatent.codec.packed import unpack
from vidlatent.codec.pieces import Pieces
from vidlatent.errors import VidlatentError
from vidlatent.latents.digest import hash_encoder
from vidlatent.latents.pixels import to_pixels
from vidlatent.media.decode import iter_timed_frames
from vidlatent.media.errors import ClipError
from vidlatent.models.load import abstract_params, model_of, open_checkpoints
from vidlatent.models.tokenizers.base import Tokenizer
from vidlatent.models.tokenizers.chunks import fade_in
from vidlatent.parallel.mesh import mesh_of_rows
from vidlatent.parallel.sharding import shardings, uneven_rows
from vidlatent.paths import as_path
from vidlatent.spec import LatentSpec, check_shape
from vidlatent.weights.files import restore_weights

__all__ = ["Codec", "place_params"]

# A video as frames uint8 [T, H, W, 3], a file, or frames uint8 [H, W, 3] one after the other.
Video = np.ndarray | str | Path | Iterable[np.ndarray]


class Codec:
    """A tokenizer with its parameters, working on uint8 frames.

    Args:
      model: the tokenizer.
      params: its parameters, a nested dict.
      options: how long and large videos are cut; None: the defaults of ``config.codec``.
      mesh: devices over which frames are spread by height. All of its axes are used; None: one
        device.
      config: what the model was made from, which compressed files with weights hold.

    Attributes:
      spec: identity of the latents, compared wherever two parts meet.
      time: how time is cut: ``'stream'``, ``'windows'`` or ``'chunks'``.
      cut: as of ``FrameCoder``: names the way of cutting frames where it changes the latents.
    """

    def __init__(
        self,
        model: Tokenizer,
        params: Any,
        options: CodecOptions | None = None,
        mesh: Mesh | None = None,
        config: configs.ConfigDict | None = None,
    ):
        # A single video has no batch to divide, so all devices share its rows.
        self._mesh = None if mesh is None else mesh_of_rows(mesh)
        self._source = model, config, options or CodecOptions.of()
        self._plan = plan_codec(self._source[-1], model, 1 if mesh is None else mesh.size)
        self._programs = self._plan.programs
        self.model = self._programs.model
        self.params = params
        if self._mesh is not None:
            self.params = jax.device_put(params, shardings(params, self._mesh))
        self.spec: LatentSpec = model.latent_spec
        self.time = self._plan.time
        self.cut = self._plan.cut
        self._pieces = Pieces(self._plan, self.spec)
        self._per_group, self._lead = self._pieces.per_group, self._pieces.lead
        self._to_pixels = jax.jit(to_pixels)
        self._fade_in = jax.jit(fade_in, static_argnums=2)

    @classmethod
    def from_workdir(
        cls,
        workdir: str | Path,
        step: int | None = None,
        options: CodecOptions | None = None,
        mesh: Mesh | None = None,
        dtype: Any = None,
    ) -> Codec:
        """The tokenizer trained in ``workdir``: its EMA at ``step`` (default: newest sound one).

        ``options`` defaults to the workdir's ``config.codec``, the compute ``dtype`` to its
        ``config.precision.compute``.
        """
        workdir = as_path(workdir)
        config = configs.read(workdir)
        model = model_of(config, dtype)
        checkpointer = open_checkpoints(config, workdir)
        try:
            # Read straight to where they belong: no device holds all of them.
            placed = place_params(model, None if mesh is None else mesh_of_rows(mesh))
            restored = restore_weights(checkpointer, placed, step=step)
        finally:
            checkpointer.close()
        options = options or CodecOptions.of(**config.codec)
        return cls(model, restored.state, options, mesh, config)

    def __repr__(self) -> str:
        spec = self.spec
        count = sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))
        return (
            f"<Codec of {spec.name}: {spec.t}x{spec.h}x{spec.w} pixels to {spec.channels} numbers, "
            f"time as {self.time}, {count / 1e6:.1f} M parameters>"
        )

    @functools.cached_property
    def encoder(self) -> str:
        """Digest of what encodes; a video that another encoder coded is not decoded."""
        return hash_encoder(self.model, self.params)

    def encode(self, video: Video, sample: int | None = None) -> Coded:
        """A video of any length and size -> its latent, and the frames kept beside it.

        Args:
          video: uint8 ``[T, H, W, 3]``, a file, or an iterable of frames uint8 ``[H, W, 3]``.
          sample: seed of a draw from the posterior; None takes its mode, the same in every call.
        """
        return Coded.join(list(self.encode_stream(video, sample)))

    def decode(
        self,
        latent: Coded | np.ndarray,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        content: np.ndarray | None = None,
    ) -> np.ndarray:
        """What ``encode`` returned, or a bare latent ``[t, h, w, c]``, to uint8 ``[T, H, W, 3]``.

        Args:
          latent: a bare one does not say how long and large the video was. Pass ``frames`` and
            ``size`` to cut the padding off.
          frames, size: length, and (height, width), of the result.
          content: for a bare latent the frames that the decoder reads, uint8 ``[n, H, W, 3]``
            (Reducio: one of each clip; FSAE-Standard and -Lite: frame 0).
        """
        if not isinstance(latent, Coded) and not hasattr(latent, "shape"):
            raise VidlatentError(
                f"latent is {type(latent).__name__}: give what encode returned, such as Coded.load "
                "reads it, or its array [t, h, w, c]; files of compress go to decompress."
            )
        return np.concatenate(list(self.decode_stream([latent], frames, size, content)))

    def compress(
        self,
        video: Video,
        fps: Fraction | float = 0.0,
        dtype: str = "float16",
        coder: str = "lzma",
        weights: bool = False,
    ) -> bytes:
        """A video to the bytes of a compressed file, as ``--mode=compress`` writes it.

        Args:
          video: a file, whose rate, times and sound are kept; or frames, as of ``encode``.
          fps: frames a second; of frames only.
          dtype: ``'float16'``, ``'bfloat16'`` or ``'float32'``, to which latents are rounded.
          coder: ``'lzma'``, ``'zlib'`` or ``'none'``, which packs without further loss.
          weights: put the decoder's weights inside, so that ``vidlatent.decompress`` restores it
            wherever it goes; they often are larger than all the rest.
        """
        return compress(self, video, fps, dtype, coder, weights)[0]

    def carry(self) -> Carried:
        """The decoder, as a compressed file can hold it.

        Raises:
          VidlatentError: the codec was made of a module, which no file can name.
        """
        model, config, options = self._source
        if config is None:
            raise VidlatentError(
                "weights=True needs a codec of load_codec: this one was made of a module, which a "
                "file cannot name."
            )
        return carry(model, config, self.params, options)

    @classmethod
    def of_carried(cls, carried: Carried, encoder: str) -> Codec:
        """The codec of ``carry``, which only decodes; ``encoder`` is the digest of what encoded.

        Raises:
          VidlatentError: it is damaged, or of a model that is not known here.
        """
        model, params, options, config = unfold(carried)
        codec = cls(model, params, options, config=config)
        codec.encoder = encoder  # its parameters are not there
        return codec

    def decompress(self, source: bytes | str | Path) -> np.ndarray:
        """What ``compress`` made, bytes or a file, to uint8 ``[T, H, W, 3]``.

        ``write_decompressed`` writes a video file with rate, times and sound instead.

        Raises:
          VidlatentError: it is no compressed video, or another encoder coded it.
        """
        return self.decode(unpack(source).coded)

    def encode_stream(self, video: Video, sample: int | None = None) -> Iterator[Coded]:
        """``encode`` piece by piece; ``frames`` of a piece counts only what it adds."""
        moments: deque[float] | None = deque() if isinstance(video, (str, Path)) else None
        key = None if sample is None else jax.random.key(sample)
        cache, start, first = None, 0, True
        for pieces in self._pieces.group_runs(self._pieces.cut(_frames_of(video, moments))):
            frames, length = [frame for piece in pieces for frame in piece.frames], pieces[0].length
            run = len(pieces) * length
            kept = self._pieces.count_kept(pieces, first)
            padded = np.stack(frames + [frames[-1]] * (run - len(frames)))
            with self._devices():
                pixels = self._pad(padded)
                if len(pieces) == 1:
                    encode, pixels = self._programs.encode, pixels[None]
                else:
                    encode = self._programs.encode_run
                    # [n * T, H, W, 3] -> [n, 1, T, H, W, 3]: n pieces, each a batch of one
                    pixels = pixels.reshape(len(pieces), 1, length, *pixels.shape[1:])
                latent, cache = encode(self.params, pixels, cache, key, start)
            content = self._programs.pick_content_frames(padded, first)
            if content is not None and self._programs.condition_kind == "content":
                # One for each clip that is kept; clips of padding alone have none.
                content = content[: kept // self._per_group]
            # Each chunk begins anew, with a latent of its own for its first frame.
            cache = None if self._plan.chunks else cache
            new = sum(piece.new for piece in pieces)
            yield Coded(
                np.asarray(latent[0, :kept]),
                self.spec,
                new,
                padded.shape[1:3],
                content,
                self._plan.chunks,
                self.encoder,
                None if moments is None else tuple(moments.popleft() for _ in range(new)),
                self.cut,
            )
            start += kept
            first = bool(self._plan.chunks)
        if not start:
            raise VidlatentError("there is no frame to encode.")

    def decode_stream(
        self,
        pieces: Iterable[Coded | np.ndarray],
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        content: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """``decode`` piece by piece; bare latents may be cut anywhere between latent frames."""
        source = Reader(
            pieces,
            self.spec,
            self._plan.chunks,
            lambda: self.encoder,
            self.cut,
            frames=frames,
            size=size,
            content=content,
        )
        videos = {"stream": self._streamed, "windows": self._windowed, "chunks": self._chunked}
        done = 0
        for video in videos[self.time](source):
            if source.size is not None:
                video = video[:, : source.size[0], : source.size[1]]
            if source.frames is not None:
                # What goes beyond the frames of the pieces read so far is padding.
                video = video[: source.frames - done]
            done += len(video)
            if len(video):
                yield video

    def reconstruct_stream(
        self, video: Video, watch: Callable[[Coded], None] = lambda piece: None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Frames -> ``(original, restored)`` pieces ``uint8 [T, H, W, 3]`` of equal length.

        ``watch`` is called with the latent of each piece, for example ``Sizes().add``.
        """
        # The encoder reads ahead of the decoder: originals wait here for their reconstruction.
        waiting: list[np.ndarray] = []

        def remember() -> Iterator[np.ndarray]:
            for frame in _frames_of(video):
                waiting.append(frame)
                yield frame

        def watched() -> Iterator[Coded]:
            for piece in self.encode_stream(remember()):
                watch(piece)
                yield piece

        for restored in self.decode_stream(watched()):
            original = np.stack(waiting[: len(restored)])
            del waiting[: len(restored)]
            yield original, restored

    def chunk_borders(self) -> Iterator[tuple[int, int]]:
        """``(first, end)`` of the frames around each border between chunks; an endless iterator.

        Empty for streams and windows, whose result is that of the whole video.
        """
        if self._plan.chunks:
            frames, overlap = self._plan.chunks
            for start in itertools.count(frames - overlap, frames - overlap):
                yield start - 1, start + overlap + 1

    def tile_borders(self, height: int, width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Rows and columns at which tiles meet in frames of this size, once one is decoded."""
        spec = self.spec
        # Tiles cut the padded frame; borders inside the padding are left out.
        sides = height + -height % spec.h, width + -width % spec.w
        rows, columns = self._programs.find_borders(*sides)
        return tuple(y for y in rows if y < height), tuple(x for x in columns if x < width)

    def _streamed(self, source: Reader) -> Iterator[np.ndarray]:
        """Decode with caches, ``groups`` frame groups at a time."""
        slots, cache, first = source.slots(), None, True
        wanted = self._plan.groups * self._per_group
        many = wanted * self._plan.scan_groups
        while piece := list(itertools.islice(slots, wanted + (self._lead > 0) if first else many)):
            # A full run goes through one program; the first piece and left-overs one by one.
            if not first and len(piece) == many > wanted:
                video, cache = self._decode_run(source, piece, cache)
                yield self._pixels(video, piece[0])
                continue
            size = len(piece) if first else wanted
            for part in (piece[i : i + size] for i in range(0, len(piece), size)):
                video, cache = self._decode_piece(source, part, cache, first)
                # Frame 0's latent stands for one frame, the others for ``t`` each; what is beyond
                # comes from padding.
                lead = first and self._lead > 0
                end = self.spec.t * (len(part) - lead) + self._lead * lead
                yield self._pixels(video, part[0])[:end]
                first = False

    def _decode_piece(
        self, source: Reader, piece: list[np.ndarray], cache: Any, first: bool
    ) -> tuple[jax.Array, Any]:
        count, wanted = len(piece), self._plan.groups * self._per_group
        # Pad the last piece so that all later pieces share one compiled shape. Nothing looks
        # ahead, so the padding does not matter and is cut off again. Independent clips are not
        # padded: a padded clip costs as much as a real one.
        if not first and self._programs.condition_kind != "content":
            piece = piece + [piece[-1]] * (wanted - count)
        if self._programs.condition_kind == "content" and count % self._per_group:
            raise VidlatentError(
                f"{count} latent frames are no clips of {self._per_group}: pass whole ones."
            )
        with self._devices():
            condition = self._condition(source, count, first)
            # t latent frames [h, w, c] -> [1, t, h, w, c]
            latent = jnp.asarray(np.stack(piece))[None]
            return self._programs.decode(self.params, latent, condition, cache)

    def _decode_run(
        self, source: Reader, pieces: list[np.ndarray], cache: Any
    ) -> tuple[jax.Array, Any]:
        """Decode ``scan_groups`` later pieces by one call."""
        count, content = self._plan.scan_groups, None
        # [n * t, h, w, c] -> [n, 1, t, h, w, c]
        latents = np.stack(pieces).reshape(count, 1, -1, *pieces[0].shape)
        if self._programs.condition_kind == "content":
            content = self._pad(source.content(len(pieces) // self._per_group))
            content = content.reshape(count, -1, *content.shape[1:])
        with self._devices():
            return self._programs.decode_run(self.params, latents, content, cache)

    def _windowed(self, source: Reader) -> Iterator[np.ndarray]:
        """Decode window by window, for decoders that look ahead."""
        slots = source.slots()
        # Reading the first latent also brings in the content frame that the condition needs.
        head = next(slots, None)
        if head is None:
            return
        with self._devices():
            condition = self._condition(source, 1, True)
            latents = (jnp.asarray(slot)[None] for slot in itertools.chain([head], slots))
            core = self._plan.window_latents
            windows = self._programs.decode_windows(self.params, latents, core, condition)
        while True:
            # The mesh is set while a window is computed, not while the caller uses it.
            with self._devices():
                video = next(windows, None)
            if video is None:
                return
            yield self._pixels(video, head)

    def _chunked(self, source: Reader) -> Iterator[np.ndarray]:
        """Decode each chunk by itself and fade into the next."""
        assert self._plan.chunks is not None
        frames, overlap = self._plan.chunks
        whole = self._plan.whole_latents
        count = self.spec.latent_shape((frames, self.spec.h, self.spec.w))[0]
        # None reads all latents at once.
        wanted = None if whole else count
        slots, tail = source.slots(), None
        while piece := list(itertools.islice(slots, wanted)):
            picture = len(piece) == 1 and tail is None and self.spec.rule.legal(1)
            if len(piece) != wanted and not picture and not whole:
                raise VidlatentError(
                    f"{len(piece)} latent frames are left over: chunks of {frames} frames have "
                    f"{count} each."
                )
            with self._devices():
                condition = self._condition(source, len(piece), True)
                latent = jnp.asarray(np.stack(piece))[None]
                video, _ = self._programs.decode(self.params, latent, condition, None)
            last = piece[0]
            if picture or whole:
                yield self._pixels(video, piece[0])
                continue
            video, tail = self._fade_in(video, tail, overlap)
            yield self._pixels(video, piece[0])
        if tail is not None and overlap:
            # No chunk follows, so the frames kept for fading are shown as they are.
            yield self._pixels(tail, last)

    def _condition(self, source: Reader, count: int, first: bool) -> Any:
        """The decoder's condition for the next ``count`` latent frames; None if it needs none."""
        if self._programs.condition_kind == "none" or (
            self._programs.condition_kind == "first" and not first
        ):
            return None
        clips = count // self._per_group if self._programs.condition_kind == "content" else 1
        return self._programs.encode_condition(self.params, self._pad(source.content(clips)))

    def _pixels(self, video: jax.Array, latent: np.ndarray) -> np.ndarray:
        """uint8 ``[T, H, W, 3]`` on the host, without the rows that pad frames to a mesh."""
        # Converted on the device, since uint8 is a quarter of the transfer; runs return uint8.
        video = video if video.dtype == np.uint8 else self._to_pixels(video)
        return np.asarray(video[0])[:, : latent.shape[0] * self.spec.h]

    def _pad(self, video: np.ndarray) -> np.ndarray:
        height, width = video.shape[1:3]
        bottom, right = -height % self.spec.h, -width % self.spec.w
        return np.pad(video, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge")

    def _devices(self) -> contextlib.AbstractContextManager[Any]:
        stack = contextlib.ExitStack()
        if self._mesh is not None:
            stack.enter_context(jax.set_mesh(self._mesh))
            stack.enter_context(uneven_rows())
        return stack


def _frames_of(video: Video, moments: deque[float] | None = None) -> Iterator[np.ndarray]:
    """Frames uint8 ``[H, W, 3]``, all of one size; ``moments`` gets the times of a file's."""
    if isinstance(video, (str, Path)):
        video = _read_file(str(video), moments)
    elif isinstance(video, (np.ndarray, jax.Array)):
        check_shape(video, "T H W C", C=3)
    elif not isinstance(video, Iterable):
        raise VidlatentError(
            f"video is {type(video).__name__}: give a file, uint8 [T, H, W, 3], or an iterator of "
            "frames."
        )
    shape = None
    for number, frame in enumerate(video):
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape != (shape or frame.shape):
            wanted = "uint8 [H, W, 3]" if shape is None else f"uint8 {list(shape)} as before"
            raise VidlatentError(
                f"frame {number} is {frame.dtype} {list(frame.shape)}: frames are {wanted}."
            )
        shape = frame.shape
        yield frame


def _read_file(path: str, moments: deque[float] | None) -> Iterator[np.ndarray]:
    """Frames of a file; their times go into ``moments``."""
    try:
        for moment, frame in iter_timed_frames(path)[1]:
            if moments is not None:
                moments.append(moment)
            yield frame
    except ClipError as error:
        raise VidlatentError(f"{path} cannot be coded: {error}.") from error


def place_params(model: Any, mesh: Mesh | None) -> Any:
    """The parameters as ShapeDtypeStructs, with their shardings on the mesh."""
    abstract = abstract_params(model)
    if mesh is None:
        return abstract
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        shardings(abstract, mesh),
    )
