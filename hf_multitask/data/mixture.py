"""Several encoded datasets as one, and the batches made of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from ..tasks import Task
from .encoding import Encoded, label_column
from .sampler import offsets
from .stream import Stream

Feature = dict[str, Any]


class Mixture(Dataset[Feature]):
    """The rows of all datasets under one numbering, see :func:`offsets`.

    A feature holds ``inputs``, for the model, ``labels`` by task, a task without label for the row being left out, and
    the name of its ``dataset``, or None where the row only fills a batch; that of a stream also its ``anchor``, see
    :meth:`Stream.fetch`.
    """

    def __init__(self, datasets: Sequence[Encoded | Stream]) -> None:
        self.datasets = list(datasets)
        self._offsets = offsets(self.sizes, self.streams)
        self._order = np.argsort(self._offsets, kind="stable")

    def lengths(self) -> dict[str, np.ndarray]:
        """Tokens of every row, by dataset; streams are left out."""
        return {dataset.name: np.array(dataset.lengths()) for dataset in self.datasets if isinstance(dataset, Encoded)}

    @property
    def streams(self) -> dict[str, Stream]:
        """Those of the datasets that are streams."""
        return {dataset.name: dataset for dataset in self.datasets if isinstance(dataset, Stream)}

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each dataset, by name; 0 of a stream that does not say."""
        return {
            dataset.name: dataset.size if isinstance(dataset, Stream) else len(dataset.rows)
            for dataset in self.datasets
        }

    @property
    def tasks(self) -> dict[str, list[str]]:
        """Names of the tasks that read each dataset."""
        return {dataset.name: dataset.tasks for dataset in self.datasets}

    @cached_property
    def digests(self) -> dict[str, str]:
        """A hash of the features of each dataset; streams are left out."""
        return {dataset.name: dataset.digest() for dataset in self.datasets if isinstance(dataset, Encoded)}

    def __len__(self) -> int:
        """Rows of all datasets together, as far as they say."""
        return sum(self.sizes.values())

    def __getitem__(self, row: int) -> Feature:
        """One row; ``~row`` is the same row without its labels, which fills a batch and counts for nothing."""
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Feature]:
        """Rows of a micro-batch, those of a dataset fetched at once; what torch's loader calls."""
        numbers = np.array([row if row >= 0 else ~row for row in rows])
        owners = self._order[np.searchsorted(self._offsets[self._order], numbers, side="right") - 1]
        features: list[Feature] = [{}] * len(rows)
        for which in np.unique(owners):
            dataset, places = self.datasets[which], np.flatnonzero(owners == which)
            own = (numbers[places] - self._offsets[which]).tolist()
            extra = {}
            if isinstance(dataset, Stream):
                columns, extra["anchor"] = dataset.fetch(own)
            else:
                columns = dataset.rows[own]
            for place, values in zip(places.tolist(), zip(*columns.values(), strict=True), strict=True):
                counts = rows[place] >= 0
                row = feature(dict(zip(columns, values, strict=True)), dataset.tasks if counts else [])
                features[place] = {**row, **extra, "dataset": dataset.name if counts else None}
        return features


def feature(values: Mapping[str, Any], tasks: Sequence[str]) -> Feature:
    """A row of an encoded dataset as model inputs and labels of some tasks."""
    return {
        "inputs": {key: value for key, value in values.items() if isinstance(value, list) and ":" not in key},
        "labels": {task: values[label_column(task)] for task in tasks if values[label_column(task)] is not None},
    }


class MixtureCollator:
    """Features to a batch: padded model inputs, and by task the rows that are its own and their labels.

    Args:
        tokenizer: pads the inputs.
        tasks: collate the labels, each its own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tasks: Mapping[str, Task]) -> None:
        self.tokenizer = tokenizer
        self.tasks = dict(tasks)

    def __call__(self, features: Sequence[Feature]) -> dict[str, Any]:
        """Inputs (B, L) each, ``task_rows`` (N,) and ``labels`` (N, ...) by task, for tasks with rows here."""
        batch = dict(
            pad_without_fast_tokenizer_warning(
                self.tokenizer, [feature["inputs"] for feature in features], return_tensors="pt"
            )
        )
        length = batch["input_ids"].shape[1]
        task_rows, labels = {}, {}
        for name, task in self.tasks.items():
            rows = [row for row, feature in enumerate(features) if name in feature["labels"]]
            if rows:
                task_rows[name] = torch.tensor(rows)
                own = [features[row]["labels"][name] for row in rows]
                labels[name] = task.collate(own, length, self.tokenizer.padding_side)
        return {**batch, "task_rows": task_rows, "labels": labels}
