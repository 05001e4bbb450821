"""From raw rows to features: the tokens of each row, and the labels of every task that reads it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ..modeling.inputs import InputEncoder
from ..modeling.processors import tokenizer_of
from ..modeling.readers import TEXTS, Reader
from ..tasks import Task
from ..tasks.base import code_of
from ..tasks.encodings import RowEncodings
from ..tasks.joining import joining
from ..tasks.labels import class_names
from ..tasks.losses import LOSS_OPTIONS
from ..tasks.measured import MEASURING
from ..tasks.slicing import slice_column, sliced_columns, slices_of
from ..version import __version__
from .digests import digest_of_rows
from .mapped import mapped
from .stream import Stream, declared_rows, first_rows
from .weights import encode_weights, weights_column

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from ..tasks.columns import Cells, Columns, References, TaskDict

CUT = "cut"
_CHUNK = 32  # rows of another modality than text that are read and written together


@dataclass
class Encoded:
    """A dataset of features: model inputs, a column ``labels:<task>`` per task, and whether the row was truncated.

    Args:
        name: name of the dataset.
        rows: the features.
        unseen: by task, labels that are not in its ``label_names``, numbered after them.
        reader: the one that made the inputs; it names the input that has the length of a row.
        limit: the maximum of this length; None if there is none.
    """

    name: str
    rows: Dataset
    unseen: dict[str, Cells] = field(default_factory=dict)
    reader: Reader = field(default_factory=Reader)
    limit: int | None = None

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks whose labels it contains."""
        return list(self.unseen)

    def lengths(self) -> list[int]:
        """Lengths of every row, in tokens or in the unit of the reader."""
        import pyarrow.compute as pc

        inputs = self.column(self.reader.input_names[0])
        if _depth(inputs.type) == self.reader.dimensions:
            return pc.list_value_length(inputs).to_pylist()
        return [sum(map(len, texts)) for texts in inputs.to_pylist()]  # several texts a row

    def highest_token(self) -> int:
        """The highest number of a token, of texts."""
        import pyarrow.compute as pc

        ids = self.column(self.reader.input_names[0])
        for _ in range(_depth(ids.type)):
            ids = pc.list_flatten(ids)
        return pc.max(ids).as_py() or 0

    def total(self, kind: str, task: str) -> int:
        """The sum of an additional column of a task, see :meth:`Task.more_columns`; 0 if there is none."""
        import pyarrow.compute as pc

        name = f"{kind}:{task}"
        return pc.sum(self.column(name)).as_py() or 0 if name in self.rows.column_names else 0

    def references(self, task: str) -> References:
        """The references for the answers to the rows with a label of a task."""
        rows = self.labelled(task)
        return rows[f"gold:{task}" if f"gold:{task}" in rows.column_names else label_column(task)]

    def labelled(self, task: str) -> Dataset:
        """The rows with a label of one task."""
        import numpy as np
        import pyarrow.compute as pc

        valid = pc.is_valid(self.column(label_column(task))).to_numpy()
        return self.rows if valid.all() else self.rows.select(np.flatnonzero(valid))

    def labelled_rows(self, task: str) -> int:
        """The number of rows with a label of one task."""
        return len(self.rows) - self.column(label_column(task)).null_count

    def column(self, name: str) -> pa.ChunkedArray:
        """A column as an Arrow array."""
        if self.rows._indices is None:  # as encoded: conversion by a format takes milliseconds, whatever the size
            return self.rows.data.column(name)
        return self.rows.select_columns([name]).with_format("arrow")[:][name]

    def digest(self) -> str:
        """A hash of inputs, labels and weights, independent of the files that they come from."""
        names = [self.reader.input_names[0], *(label_column(task) for task in self.tasks)]
        names += [column for task in self.tasks if (column := weights_column(task)) in self.rows.column_names]
        names += [column for column in self.rows.column_names if column.startswith("slice:")]
        return digest_of_rows(self.rows.select_columns(names))

    def cut_rows(self) -> int:
        """The number of rows that were longer than the limit."""
        return sum(self.rows[CUT])


def _depth(kind: pa.DataType) -> int:
    """The number of nested lists in an Arrow type."""
    import pyarrow as pa

    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth


def label_column(task: str) -> str:
    """The feature column with the labels of a task."""
    return f"labels:{task}"


def group_tasks(tasks: Mapping[str, Task]) -> dict[str, list[Task]]:
    """Tasks grouped by their inputs: tasks that read the same texts of a dataset share rows and the backbone pass.

    Tasks that truncate long texts read the first window of tasks that read whole texts, which come first in a group.
    A group has the name of its dataset, or of its first task if a dataset has several groups.
    """
    groups: dict[tuple[tuple[Hashable, ...], Hashable], list[Task]] = {}
    for task in tasks.values():
        groups.setdefault((task.input_key, task.windows_key), []).append(task)
    order = list(tasks.values())
    for key, windows in list(groups):
        whole = [other for other in groups if other[0] == key and other[1] is not None]
        if windows is None and whole:
            groups[whole[0]] = sorted([*groups[whole[0]], *groups.pop((key, None))], key=order.index)
    sources = [str(key[0]) for key, _ in groups]
    return {
        (source if sources.count(source) == 1 else str(members[0].name)): members
        for source, members in zip(sources, groups.values(), strict=True)
    }


def encode_dataset(
    name: str,
    dataset: Dataset,
    tasks: Sequence[Task],
    *,
    tokenizer: object,
    config: PreTrainedConfig,
    split: str,
    training: bool,
    vocabulary: str | None = None,
    workers: int = 0,
) -> Encoded:
    """Tokenize a dataset and align its labels; ``datasets`` caches the result by everything that it depends on.

    Args:
        name: name of the group of tasks.
        dataset: raw rows.
        tasks: the tasks of the group; their labels are resolved.
        tokenizer: or the object that contains the processor of the tasks' reader; a fast one if a task tags words.
        config: the backbone's configuration.
        split: name of the split, for messages.
        training: whether a label outside ``label_names`` is always an error.
        vocabulary: the result of :func:`digest_of` for the processor, which takes long; computed if None.
        workers: processes that read rows of another modality than text; this one if 0.

    Raises:
        ValueError: a row or a label is invalid; the message names the task, the row and the column.
    """
    if len(dataset) == 0:
        raise tasks[0].error(f"the {split} data of dataset '{tasks[0].source}' are empty. Add rows.")
    unseen: dict[str, Cells] = {}
    for task in tasks:
        task.check_columns(dataset, split)
    tasks = [task.reading([dataset]) for task in tasks]
    for task in tasks:
        unknown = task.unseen(dataset)
        allowed = not training and getattr(task, "unseen_labels", "") == "count_wrong"
        unseen[str(task.name)] = unknown if allowed else []
    encoder = RowEncoder(tasks, tokenizer, config, split, dataset, unseen, training=training)
    options: dict[str, object] = {"desc": f"Tokenizing {name} ({split})"}
    reader = tasks[0].reader
    if reader.modality != TEXTS:
        options["desc"] = f"Reading {reader.modality} of {name} ({split})"
        if all(task.keeps_rows for task in tasks):  # other types combine the rows of a chunk
            number = min(workers, len(dataset))
            options |= {"batch_size": _CHUNK, "writer_batch_size": _CHUNK, "num_proc": number if number > 1 else None}
    rows = mapped(
        tasks[0].stored(dataset).with_format(None).select_columns(encoder.columns),
        encoder,
        new_fingerprint=_fingerprint(dataset, tasks, encoder.encoder, unseen, vocabulary, training),
        **options,
    )
    return Encoded(name, rows, unseen, reader, encoder.encoder.limit)


def encode_stream(
    name: str,
    dataset: IterableDataset,
    tasks: Sequence[Task],
    *,
    tokenizer: object,
    config: PreTrainedConfig,
) -> Stream:
    """A training stream whose rows are tokenized when they are requested.

    Args:
        name: name of the group of tasks.
        dataset: raw rows.
        tasks: the tasks of the group; their labels are resolved.
        tokenizer: a fast one if a task classifies tokens.
        config: the configuration of the backbone.

    Raises:
        ValueError: a task changes the number of rows.
    """
    for task in tasks:
        if not task.keeps_rows:
            raise task.error(
                f"{task.type} combines the rows of its data into blocks or groups, which is not possible for a stream. "
                "Use an ordinary dataset."
            )
    from ..tasks.recordings import undecoded

    names = [str(task.name) for task in tasks]
    dataset = undecoded(tasks[0].stored(dataset))
    encoder = RowEncoder(tasks, tokenizer, config, "train", first_rows(dataset), {task: [] for task in names})
    return Stream(name, dataset, names, encoder, encoder.columns, declared_rows(dataset))


class RowEncoder:
    """Converts columns of raw rows to columns of features.

    Args:
        tasks: the tasks of a group.
        tokenizer: a fast one if a task classifies tokens.
        config: the configuration of the backbone.
        split: name of the split, for messages.
        sample: rows that show the types of the columns.
        unseen: by task, labels that are numbered after its ``label_names``.
        training: whether the rows are for training, not for evaluation.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: object,
        config: PreTrainedConfig,
        split: str,
        sample: Dataset,
        unseen: Mapping[str, Cells],
        *,
        training: bool = True,
    ) -> None:
        self.tasks, self.split, self.unseen, self.training = list(tasks), split, unseen, training
        self.lead = next((task for task in tasks if task.windows_key is not None), tasks[0])
        reads = next((task for task in tasks if task.reader.writes), tasks[0])  # with a tokenizer, whatever it reads
        self.encoder = reads.reader.encoder(tokenizer, config, reads.to_dict() | {"name": reads.name})
        present = [] if training else sample.column_names
        self.sliced = {str(task.name): sliced_columns(task, present) for task in tasks}
        read = {column for task in tasks for column in task.all_columns}
        self.columns = sorted(read.union(*self.sliced.values()))
        self.classes = {column: names for column in self.columns if (names := class_names(sample, column)) is not None}
        fast = getattr(self.encoder.processor, "is_fast", False)
        self.offsets = fast and any(task.aligns_words for task in tasks)
        self.process = os.getpid()

    def __call__(self, rows: Columns, indices: list[int]) -> Columns:
        """Features of some rows, whose indices are used in messages."""
        if os.getpid() != self.process:  # one process of several, which would wait for the threads of the others
            torch.set_num_threads(1)
            self.process = os.getpid()
        lead, split = self.lead, self.split
        numbers = {column: _named(rows[column], range(len(names))) for column, names in self.classes.items()}
        rows = rows | {column: _named(rows[column], names) for column, names in self.classes.items()}
        rows, indices = lead.batch_rows(joining(lead, rows), indices)
        inputs, encoding, cut = lead.encode_inputs(rows, indices, self.encoder, split, offsets=self.offsets)
        if isinstance(encoding, RowEncodings):
            encoding.training = self.training
        columns: Columns = {}
        for task in self.tasks:
            name = str(task.name)
            own = rows | numbers if task.reads_numbers else rows
            labels = task.encode_labels(own, indices, encoding, self.unseen[name], split)
            columns[label_column(name)] = labels
            if task.weight_column is not None:
                columns[weights_column(name)] = encode_weights(task, rows[task.weight_column], labels, indices, split)
            for kind, values in task.more_columns(rows, labels, encoding, training=self.training).items():
                columns[f"{kind}:{name}"] = values
            for column in self.sliced[name]:
                columns[slice_column(name, column)] = self._slices(slices_of(rows[column]), rows, indices, len(labels))
        if all(task.windows_key is not None for task in self.tasks):
            cut = [False] * len(cut)
        return {**inputs, CUT: cut, **columns}

    def _slices(self, cells: Cells, rows: Columns, indices: list[int], count: int) -> Cells:
        """The slices of encoded rows, which may be parts of rows, or groups of them."""
        lead = self.lead
        if lead.keeps_rows:
            return [cell[0] if isinstance(cell, list) else cell for cell in cells]
        if len(cells) == count:
            return cells
        result: Cells = []
        for place, (cell, index) in enumerate(zip(cells, indices, strict=True)):
            one = {column: [values[place]] for column, values in rows.items()}
            parts = lead.encode_inputs(one, [index], self.encoder, self.split, offsets=self.offsets)[2]
            result += [cell] * len(parts)
        if len(result) != count:
            raise lead.error(f"`slice_columns` is not for {lead.type}, which combines the rows of its data. Remove it.")
        return result


def _named(cells: Cells, names: Sequence[object]) -> Cells:
    """ClassLabel numbers by name, in lists or not, missing ones (-1) as None."""
    return [
        _named(cell, names) if isinstance(cell, list) else None if cell is None or cell < 0 else names[cell]
        for cell in cells
    ]


def digest_of(tokenizer: object) -> str:
    """A hash of how a tokenizer makes tokens, independent of its current padding and truncation.

    For any other processor, a hash of its settings.

    Raises:
        TypeError: a processor is no tokenizer and has no ``to_dict``.
    """
    held: PreTrainedTokenizerBase | None = tokenizer_of(tokenizer)
    if held is None or held is not tokenizer:
        described = getattr(tokenizer, "to_dict", None)
        if not callable(described):
            raise TypeError(
                f"A processor should have a `to_dict`, by which its rows are cached. Found {type(tokenizer).__name__}, "
                "which has none. Derive it from transformers.FeatureExtractionMixin or ProcessorMixin."
            )
        own = "" if held is None else digest_of(held)
        return hashlib.sha256(json.dumps([described(), own], default=str).encode()).hexdigest()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        parts = json.loads(backend.to_str())
        vocabulary: object = {key: value for key, value in parts.items() if key not in ("truncation", "padding")}
    else:
        vocabulary = sorted(held.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def _encoded_by(task: Task) -> TaskDict:
    """The arguments of a task that its encoded rows depend on."""
    apart = {*MEASURING, "layer", *(() if task.groups_by_loss else LOSS_OPTIONS)}
    return {key: value for key, value in task.to_dict().items() if key not in apart}


def _fingerprint(
    dataset: Dataset,
    tasks: Sequence[Task],
    encoder: InputEncoder,
    unseen: dict[str, Cells],
    vocabulary: str | None,
    training: bool,
) -> str:
    """A hash of everything that the features depend on.

    The default hash of the pickled function would change with the padding state of the tokenizer.
    """
    vocabulary = vocabulary or digest_of(encoder.processor)
    parts = [dataset._fingerprint, __version__, vocabulary, encoder.names, encoder.limit]
    side = getattr(encoder.processor, "truncation_side", None)
    parts += [[(_encoded_by(task), task.code()) for task in tasks], unseen, side]
    parts += [encoder.language, encoder.config.model_type, training]
    if tasks[0].reader.modality != TEXTS:
        parts += [code_of(type(tasks[0].reader)), tasks[0].outside(dataset)]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]
