"""``data.source = 'tfds'``: a TensorFlow Datasets set, read without TensorFlow.

It must be stored as ``array_record``, the format with random access.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from vidlatent.data.options import DataOptions
from vidlatent.data.sources.base import Entry, MediaSource
from vidlatent.data.split import TRAIN, VALIDATION
from vidlatent.errors import VidlatentError

__all__ = ["TfdsSource", "make"]


class TfdsSource(MediaSource):
    """A TFDS data set whose examples hold encoded videos or pictures.

    Split 'train' is trained on, and 'validation' (or else 'test') is held out. If there is neither,
    ``data.validation_share`` of 'train' is held out.

    Args:
      path: ``data_dir`` of TFDS, or the folder of one prepared data set if ``name`` is ''.
      name: of the data set as ``tfds.builder`` takes it.
      field: holds an encoded video or picture as bytes (``Text``, ``Scalar(object)`` or a
        ``Tensor`` of strings).
      label: field with the class, a ``ClassLabel`` or any value, whose text is then the label; ''
        for none.
      caption: field with a text; '' for none.

    Raises:
      VidlatentError: neither ``path`` nor ``name``; later, when the set is opened: a missing
        package, data set, split or field.
    """

    def __init__(self, path: str, name: str, field: str, label: str = "", caption: str = ""):
        if not (path or name):
            raise VidlatentError("data.source = 'tfds' needs data.tfds_name or data.path.")
        self.path, self.name, self.field = os.path.expanduser(path), name, field
        self.label, self.caption = label, caption
        self.where = f"TFDS {name or path}"
        self._reset()

    def _reset(self):
        # Locks and open readers cannot be pickled, so each process makes its own.
        self._lock, self._builder, self._readers = threading.Lock(), None, {}
        self._last = threading.local()  # the example that each thread read last

    def __getstate__(self) -> dict[str, Any]:
        kept = ("path", "name", "field", "label", "caption", "where", "resize")
        return {key: getattr(self, key) for key in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _open(self):
        """The builder; called with the lock held."""
        if self._builder is None:
            try:
                import tensorflow_datasets as tfds
                from tensorflow_datasets.core.dataset_info import DatasetInfoFileError
            except ImportError as error:
                raise VidlatentError(
                    "data.source = 'tfds' needs tensorflow_datasets and array_record: "
                    "run pip install tensorflow-datasets array_record."
                ) from error
            try:
                if self.name:
                    self._builder = tfds.builder(self.name, data_dir=self.path or None)
                else:
                    self._builder = tfds.builder_from_directory(self.path)
            except (
                tfds.core.DatasetNotFoundError,
                DatasetInfoFileError,
                OSError,
                ValueError,
            ) as error:
                first = str(error).strip().splitlines()[0]
                raise VidlatentError(f"{self.where} cannot be opened: {first}") from error
        return self._builder

    def _open_split(self, split: str):
        with self._lock:
            # Many threads ask at once, and only the first one opens the set.
            if split not in self._readers:
                builder = self._open()
                fields = {"field": self.field, "label": self.label, "caption": self.caption}
                for key, field in fields.items():
                    if field and field not in builder.info.features:
                        raise VidlatentError(
                            f"data.tfds_{key} = {field!r} is not in {self.where}: "
                            f"it has {', '.join(builder.info.features)}."
                        )
                self._readers[split] = builder.as_data_source(split)
            return self._readers[split]

    def entries(self) -> list[Entry]:
        with self._lock:
            splits = self._open().info.splits
        if "train" not in splits:
            raise VidlatentError(f"{self.where} has no split 'train' (is it prepared?).")
        held = next((name for name in ("validation", "test") if name in splits), None)
        parts = {"train": TRAIN if held else ""}
        if held:
            parts[held] = VALIDATION
        found = []
        for split, part in parts.items():
            count = len(self._open_split(split))
            # Examples have no time of change: number and bytes of the split stand in for it.
            stamp = (count, int(splits[split].num_bytes or 0))
            names = [f"{split}/{i}" for i in range(count)]
            found += [Entry(name, name, stamp, part) for name in names]
        return found

    def labels(self) -> tuple[str, ...]:
        if not self.label:
            return ()
        with self._lock:
            feature = self._open().info.features[self.label]
        return tuple(feature.names or ()) if hasattr(feature, "names") else ()

    def describe(self, name: str) -> tuple[str, str]:
        label = caption = ""
        if self.label:
            value, names = self._read_field(name, self.label), self.labels()
            label = _to_text(value)
            # A ClassLabel is stored as a number; TFDS writes -1 where the class is unknown.
            if names and not isinstance(value, bytes):
                label = names[int(value)] if 0 <= int(value) < len(names) else ""
        if self.caption:
            caption = _to_text(self._read_field(name, self.caption)).strip()
        return label, caption

    def _read_field(self, name: str, field: str) -> Any:
        last = self._last.__dict__
        if last.get("name") != name:  # one clip is asked for its label, then its caption
            split, _, number = name.rpartition("/")
            last["example"] = self._open_split(split)[int(number)]
            last["name"] = name
        value = last["example"][field]
        return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value

    def media(self, name: str) -> bytes:
        value = self._read_field(name, self.field)
        if not isinstance(value, bytes):
            raise VidlatentError(
                f"data.tfds_field = {self.field!r} of {self.where} holds {type(value).__name__}, "
                "not the bytes of an encoded clip."
            )
        return value


def _to_text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def make(options: DataOptions, seed: int) -> TfdsSource:
    """The data set that ``data.tfds_name`` or ``data.path`` names."""
    del seed
    return TfdsSource(
        options.path,
        options.tfds_name,
        options.tfds_field,
        options.tfds_label,
        options.tfds_caption,
    )
