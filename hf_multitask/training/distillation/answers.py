"""What a teacher answers for the rows of a dataset, computed once and cached beside the tokenized rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers import PreTrainedConfig
from transformers.utils import logging

from ...data import Encoded, MixtureCollator, digest_of
from ...data.encoding import label_column
from ...data.mapped import cached_map
from ...data.soft import places_column, soft_column
from ...modeling.heads import IGNORE
from ...modeling.inputs import as_text
from ...modeling.words import joined
from ...tasks import Task
from ...tasks.alignment import align_spans, align_words
from ...tasks.joining import joining, stored_columns
from ...version import __version__
from ..preparation.processors import Processing
from .streaming import streamed
from .teacher import Teacher

if TYPE_CHECKING:
    from datasets import Dataset

    from ...modeling.inputs import Encoder
    from ...tasks.columns import Columns
    from ...tasks.encodings import RowEncodings

logger = logging.get_logger(__name__)

_CHUNK = 1024  # rows that are sorted by length and written together
_TOKENS = 8192  # of a forward pass at most, padding included


class Pass:
    """Reads rows of a dataset as a task, and says which token every unit of a text begins with.

    A unit is a word for tags of words, and a token for tags of running text.

    Args:
        task: with the columns of the dataset.
        form: of its outputs.
        processing: the tokenizer.
        config: of the backbone.

    Attributes:
        cut: how many rows it has read a part of.
    """

    def __init__(self, task: Task, form: str, processing: Processing, config: PreTrainedConfig) -> None:
        self.task, self.form, self.cut = task, form, 0
        values = task.to_dict() | {"name": task.name}
        self.encoder: Encoder = task.reader.encoder(processing, config, values)

    def features(self, rows: Columns, indices: list[int]) -> list[dict[str, Any]]:
        """The features of some rows; labels are the numbers of units, or have no meaning."""
        task = self.task
        rows, indices = task.batch_rows(joining(task, rows), indices)
        inputs, encoding, cut = task.encode_inputs(rows, indices, self.encoder, "train", offsets=task.aligns_words)
        self.cut += 0 if task.windows_key is not None else sum(cut)
        labels: list[Any]
        if task.labels_tokens:
            labels = [self._units(rows, row, cast("RowEncodings", encoding)) for row in range(len(indices))]
        else:
            labels = [[0.0] if self.form == "scores" else 0 for _ in indices]
        name = str(task.name)
        return [
            {"inputs": {key: values[row] for key, values in inputs.items()}, "labels": {name: label}}
            for row, label in enumerate(labels)
        ]

    def _units(self, rows: Columns, row: int, encoding: RowEncodings) -> list[int]:
        """For every token, the number of the unit that it begins; IGNORE for other tokens."""
        windows = encoding.text(row)
        if getattr(self.task, "spans_column", None) is None:
            words = rows[getattr(self.task, "tokens_column")][row]  # noqa: B009
            return align_words(windows, joined(words)[1], list(range(len(words))), None).labels
        text = as_text(rows[self.task.text_columns[0]][row])
        labels = align_spans(windows, text, [], {"O": 0}, "BIO").labels
        numbers = iter(range(len(labels)))
        return [IGNORE if label == IGNORE else next(numbers) for label in labels]


class Answers:
    """Answers rows of a dataset: a column of numbers, and for tags one of the places of the tokens they are for.

    Args:
        teacher: that answers.
        theirs: how the teacher reads the rows.
        ours: how the shared model reads them.
        wanted: which rows of the dataset are answered.
        device: where the teacher runs.
    """

    def __init__(self, teacher: Teacher, theirs: Pass, ours: Pass, wanted: np.ndarray, device: torch.device) -> None:
        self.teacher, self.theirs, self.ours, self.wanted, self.device = teacher, theirs, ours, wanted, device
        self.collator = MixtureCollator(teacher.tokenizer, {teacher.name: theirs.task})
        self.tags = theirs.task.labels_tokens
        self.missing = 0

    def __call__(self, rows: Columns, indices: list[int]) -> Columns:
        """The columns of some rows; None for rows that are not wanted."""
        name, picked = self.teacher.name, [row for row, index in enumerate(indices) if self.wanted[index]]
        numbers: list[Any] = [None] * len(indices)
        places: list[Any] = [None] * len(indices)
        if picked:
            own = {column: [values[row] for row in picked] for column, values in rows.items()}
            told = [indices[row] for row in picked]
            features = self.theirs.features(own, told)
            found = self._run(features)
            for index, values in zip(told, found, strict=True):
                self._check(values, index)
            if self.tags:
                units = [feature["labels"][name] for feature in self.ours.features(own, told)]
                for row, values, feature, labels in zip(picked, found, features, units, strict=True):
                    numbers[row], places[row] = self._placed(values, feature["labels"][name], labels)
            else:
                for row, values in zip(picked, found, strict=True):
                    numbers[row] = self._ordered(values)
        return {soft_column(name): numbers} | ({places_column(name): places} if self.tags else {})

    def _ordered(self, values: np.ndarray) -> np.ndarray:
        order = self.teacher.order
        return values if order is None else values[..., order]

    def _placed(self, values: np.ndarray, theirs: Sequence[int], ours: Sequence[int]) -> tuple[np.ndarray, list[int]]:
        """The numbers of the units that both tokenizers have a token for, flat, and the places of our tokens."""
        line = {unit: number for number, unit in enumerate(unit for unit in theirs if unit != IGNORE)}
        begun = [(place, unit) for place, unit in enumerate(ours) if unit != IGNORE]
        both = [(place, line[unit]) for place, unit in begun if unit in line]
        self.missing += len(begun) - len(both)
        lines = self._ordered(values[[number for _, number in both]])
        return lines.reshape(-1).astype(np.float32), [place for place, _ in both]

    def _run(self, features: Sequence[dict[str, Any]]) -> list[np.ndarray]:
        """The outputs for some rows, in their order: (C,), or (M, C) of the M units that have a token."""
        lengths = np.array([self.collator.length(feature["inputs"]) for feature in features])
        found: list[np.ndarray] = [np.zeros(0)] * len(features)
        for places in _batches(np.argsort(lengths, kind="stable"), lengths):
            for place, values in zip(places, self._outputs([features[place] for place in places]), strict=True):
                found[place] = values
        return found

    def _outputs(self, features: Sequence[dict[str, Any]]) -> Iterator[np.ndarray]:
        name, model = self.teacher.name, self.teacher.model
        batch = self.collator(features)
        labels, rows = batch.pop("labels")[name], batch["task_rows"][name]
        with torch.no_grad():
            given = {key: value.to(self.device) for key, value in batch.items() if key != "task_rows"}
            logits = model(**given, task_rows={name: rows.to(self.device)}).logits[name].float()
            if self.teacher.form == "scores":
                logits = cast(Any, model.heads[name]).predictions(logits, labels)
        for values, own, texts in zip(logits.cpu().numpy(), labels.numpy(), rows.numpy(), strict=True):
            if self.tags:
                yield values[own != IGNORE]
            else:
                yield values[texts >= 0] if self.teacher.form == "choices" else values

    def _check(self, values: np.ndarray, index: int) -> None:
        if not np.isfinite(values).all():
            raise self.theirs.task.error(
                f"its teacher {self.teacher.source} should answer finite numbers. Found NaN or infinity for row "
                f"{index} of the training data of '{self.theirs.task.source}'. Give another teacher."
            )


def _batches(order: np.ndarray, lengths: np.ndarray) -> Iterator[list[int]]:
    """Rows in the order of their lengths, as many together as a forward pass may have."""
    batch: list[int] = []
    for place in order.tolist():
        if batch and (len(batch) + 1) * lengths[place] > _TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def answered(
    encoded: Encoded,
    raw: Dataset,
    task: Task,
    teacher: Teacher,
    *,
    everything: bool,
    processing: Processing,
    config: PreTrainedConfig,
    device: torch.device,
) -> Encoded:
    """An encoded dataset with the answers of a teacher, cached by everything that they depend on.

    Args:
        encoded: the rows as the shared model reads them.
        raw: the rows.
        task: the one of the teacher, or one that reads the same kind of input of this dataset.
        teacher: that answers.
        everything: whether it answers rows without a label, too.
        processing: the trainer's tokenizer.
        config: of the shared model's backbone.
        device: where the teacher runs.

    Raises:
        ValueError: an answer is NaN or infinite.
    """
    from datasets import Features, List, Value, concatenate_datasets

    wanted = np.ones(len(raw), dtype=bool)
    if not everything:
        import pyarrow.compute as pc

        wanted = pc.is_valid(encoded.column(label_column(teacher.name))).to_numpy()
    theirs = Pass(teacher.reading(task), teacher.form, teacher.tokenizer, teacher.model.config.backbone_config)
    ours = Pass(task, teacher.form, processing, config)
    answers = Answers(teacher, theirs, ours, wanted, device)
    columns = sorted(set(stored_columns(task, *task.input_columns)))
    kinds = {soft_column(teacher.name): "float32"} | ({places_column(teacher.name): "int64"} if answers.tags else {})
    fingerprint = _fingerprint(raw, answers, digest_of(task.reader.processor(processing)))
    options: dict[str, Any] = {
        "batched": True,
        "batch_size": _CHUNK,
        "with_indices": True,
        "remove_columns": columns,
        "new_fingerprint": fingerprint,
        "features": Features({column: List(Value(kind)) for column, kind in kinds.items()}),
        "desc": f"Teacher of {teacher.name} ({encoded.name})",
    }
    rows = task.stored(raw).with_format(None).select_columns(columns)
    with _running(teacher, device):
        found = cached_map(rows, answers, **options)
    if answers.missing:
        logger.warning(
            f"Task '{teacher.name}': its teacher has no token for {answers.missing:,} words of '{encoded.name}', whose "
            "labels count alone."
        )
    if theirs.cut:
        logger.warning(
            f"Task '{teacher.name}': its teacher reads at most {theirs.encoder.limit} tokens, so that its answers to "
            f"{theirs.cut:,} rows of '{encoded.name}' are to a part of them. Give a teacher with a larger max_length "
            "or a stride."
        )
    merged = concatenate_datasets([encoded.rows, found], axis=1)
    return Encoded(encoded.name, merged, encoded.unseen, encoded.reader, encoded.limit)


@contextmanager
def _running(teacher: Teacher, device: torch.device) -> Iterator[None]:
    """Within it, a teacher is ready to answer; a model that was given is as it was afterwards."""
    model = teacher.model
    training, before = model.training, model.device
    stays = streamed(model)
    model.eval()
    if not stays:
        model.to(device)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if not stays:
            model.to(before)  # type: ignore[arg-type]
        model.train(training)


def _fingerprint(raw: Dataset, answers: Answers, vocabulary: str) -> str:
    """A hash of what the answers depend on: rows, teacher, and how both models read them."""
    theirs, ours = answers.theirs, answers.ours
    parts = [raw._fingerprint, __version__, answers.teacher.digest, answers.teacher.order, answers.teacher.name]
    parts += [
        theirs.encoder.names,
        theirs.task.to_dict(),
        theirs.task.code(),
        hashlib.sha256(answers.wanted.tobytes()).hexdigest(),
    ]
    if answers.tags:
        side = getattr(ours.encoder.processor, "truncation_side", None)
        parts += [ours.task.to_dict(), vocabulary, ours.encoder.limit, ours.encoder.names, side]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]
