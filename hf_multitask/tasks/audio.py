"""Tasks that read recordings, and their classification."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from ..modeling.fitted import scaled
from ..modeling.kinds import reader_of
from ..modeling.losses import loss_options
from ..modeling.sound import SoundError, located
from . import labels as lab
from .base import Task
from .constant import of_classes
from .encodings import read_rows
from .fitting import Calibrated
from .losses import SoftLabels
from .measures import Classes, default_names, measured, probabilities, table_of
from .registration import register_task

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..modeling.inputs import Encoder, InputEncoder
    from ..modeling.readers import Reader, Reading, Row
    from .columns import Cells, Columns, Encoding, Labels, References

MIXED, RESAMPLED = "mixed", "resampled"
_PROBLEM = "single_label_classification"


@dataclass(frozen=True)
class Recordings:
    """What was read of a batch of rows, and what it was read with."""

    readings: list[Reading]
    encoder: InputEncoder


@dataclass(kw_only=True)
class AudioTask(Task):
    """A task on the recordings of a column; see its subclasses for the arguments."""

    remarks: ClassVar[Mapping[str, str]] = {
        MIXED: "have several channels, which were averaged",
        RESAMPLED: "have another sampling rate than the backbone and were resampled",
    }
    audio_column: str = "audio"
    architecture: str | None = None

    @property
    def reader(self) -> Reader:
        """See :class:`Task`: that of the architecture."""
        return reader_of({"type": self.type, "name": self.name, "architecture": self.architecture})

    def encode_inputs(
        self,
        rows: Columns,
        indices: list[int],
        encoder: Encoder,
        split: str,
        *,
        offsets: bool,  # noqa: ARG002
    ) -> tuple[Columns, Encoding, list[bool]]:
        """See :meth:`Task.encode_inputs`: the recordings, whose encoding is :class:`Recordings`."""
        task = {**self.to_dict(), "name": self.name}
        inputs: Columns = {}
        readings: list[Reading] = []
        cut: list[bool] = []
        for cell, index in zip(rows[self.audio_column], indices, strict=True):
            try:
                one, reading, long = read_rows(self.reader, task, {self.audio_column: [cell]}, encoder, several=False)
            except SoundError as problem:
                raise self.row_error(index, split, f"column '{self.audio_column}': {problem}") from None
            for name, values in one.items():
                inputs.setdefault(name, []).extend(values)
            readings += reading
            cut += long
        return inputs, Recordings(readings, encoder), cut

    def more_columns(
        self,
        rows: Columns,  # noqa: ARG002
        labels: Labels,  # noqa: ARG002
        encoding: Recordings,
        *,
        training: bool,  # noqa: ARG002
    ) -> Columns:
        """See :meth:`Task.more_columns`: which recordings were mixed down and resampled."""
        sounds = [reading.rest for reading in encoding.readings]
        return {MIXED: [sound.mixed for sound in sounds], RESAMPLED: [sound.resampled for sound in sounds]}

    def stored(self, dataset: Dataset) -> Dataset:
        """See :meth:`Task.stored`: ``datasets.Audio`` as the files it holds, which the reader decodes."""
        from .recordings import undecoded

        return undecoded(dataset)

    def located(self, dataset: Dataset, folders: Sequence[Path]) -> Dataset:
        """See :meth:`Task.located`."""
        column, stored = self.audio_column, self.stored(dataset)
        if column not in (stored.column_names or ()) or not folders:
            return stored
        kwargs: dict[str, object] = {} if hasattr(stored, "num_rows") else {"features": stored.features}
        return stored.map(_located, fn_kwargs={"column": column, "folders": list(folders)}, **kwargs)

    def outside(self, dataset: Dataset) -> Hashable:
        """See :meth:`Task.outside`: size and time of every file."""
        digest = hashlib.blake2b(digest_size=16)
        for cell in self.stored(dataset).with_format(None).select_columns([self.audio_column])[self.audio_column]:
            name = cell.get("path") if isinstance(cell, dict) and not cell.get("bytes") else cell
            if isinstance(name, str) and Path(name).is_file():
                stat = Path(name).stat()
                digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def _located(row: Row, column: str, folders: Sequence[Path]) -> Columns:
    return {column: located(row[column], folders)}


@dataclass(kw_only=True)
class AudioClassification(AudioTask, SoftLabels, Calibrated):
    """Classify a recording: speaker, emotion, language, key word.

    Args:
        audio_column: column of the recording: a file name, the bytes of a file, ``{"bytes": ..., "path": ...}``,
            ``{"array": ..., "sampling_rate": ...}``, or a ``datasets.Audio`` column.
        label_column: column of the label: a name, a number or a ClassLabel; None in a row without a label.
        label_names: names of the classes, in the order of their numbers; read from the data if None.
        unseen_labels: how evaluation treats a label outside ``label_names``: ``"count_wrong"`` or ``"error"``.
        class_weights, label_smoothing, loss, loss_kwargs: see :class:`hf_multitask.tasks.losses.LabelLoss`.
        soft_labels: see :class:`hf_multitask.tasks.losses.SoftLabels`.
        dataset, weight_column: see :class:`Task`.
        max_length: samples, at the rate of the backbone, to which a recording is truncated; not truncated if None.
        language: of the recordings, for the model card.
        architecture: ``"seq2seq_whisper"`` or None; set by the model, as its backbone has it.
        metrics: see :class:`Task`.
        calibration: see :class:`SequenceClassification`.
        fitted: see :class:`SequenceClassification`.

    Example::

        AudioClassification(audio_column="audio", label_column="speaker")
    """

    type: ClassVar[str] = "audio-classification"
    label_column: str = "label"

    @property
    def target_column(self) -> str:
        """Column of the labels."""
        return self.label_column

    def resolve(self, train: Dataset | None, others: Sequence[Dataset]) -> Task:
        """See :meth:`Task.resolve`."""
        data = [dataset for dataset in (train, *others) if dataset is not None]
        self.reading(data)
        if self.label_names is not None:
            return self
        return self._with_names_of_soft(data, self.label_column) if self.soft_labels else self.with_names_of(data)

    def reading(self, data: Sequence[Dataset]) -> Task:
        """See :meth:`Task.reading`.

        Raises:
            ValueError: the label column has no classes.
        """
        if self.soft_labels:
            self._check_soft(data, self.label_column)
            return self
        for dataset in data:
            found, depth = lab.kind(dataset, self.label_column)
            whole = found == "float" and all(isinstance(value, int) for value in self.labels_of(dataset))
            if depth or not (found in ("name", "number", "nothing") or whole):
                raise self.error(
                    f"column '{self.label_column}' contains {lab.describe(found, depth)}, but {self.type} needs one "
                    "name or whole number per row. Set another label_column."
                )
        return self

    def encode_labels(
        self,
        rows: Columns,
        indices: list[int],
        encoding: Encoding,  # noqa: ARG002
        unseen: Cells,
        split: str,
    ) -> Labels:
        """See :meth:`Task.encode_labels`."""
        table = lab.numbering(self.label_names or [], unseen)
        labels: Labels = []
        for value, index in zip(rows[self.label_column], indices, strict=True):
            where = f"row {index} of the {split} data"
            if value is not None and self.soft_labels:
                labels.append(self._soft(value, table, where))
                continue
            if value is not None and value not in table:
                raise self.unknown_label(value, where)
            labels.append(None if value is None else table[value])
        return labels

    def unseen(self, dataset: Dataset) -> Cells:
        """See :meth:`Task.unseen`."""
        return [] if self.soft_labels else super().unseen(dataset)

    def constant_loss(
        self,
        labels: References,
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: entropy of the classes."""
        return of_classes(labels, loss_options(self.to_dict()))

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`."""
        return default_names(_PROBLEM, None if self.label_names is None else len(self.label_names))

    @property
    def possible_metrics(self) -> Mapping[str, Callable[..., float]]:
        """See :class:`Task`."""
        return table_of(_PROBLEM, None if self.label_names is None else len(self.label_names))

    def measure(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,
        unseen: Cells,  # noqa: ARG002
    ) -> dict[str, float]:
        """By default ``accuracy`` and ``macro_f1``, and ``f1`` for two classes."""
        calibrated = scaled(self.to_dict(), torch.from_numpy(predictions)).numpy()
        given, table = Classes(labels, calibrated.argmax(-1), probabilities(calibrated)), self.possible_metrics
        return measured(self.metrics or self.metric_names or [], table, given, self.tell)


register_task(AudioClassification)
