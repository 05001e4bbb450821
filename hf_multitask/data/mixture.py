"""Several encoded datasets as one, and the batches of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..modeling.inputs import WINDOWS, rows_of
from ..modeling.readers import TEXTS, Reader, Row
from ..tasks import Task
from ..tasks.columns import Inputs
from .encoding import Encoded, label_column
from .forwards import Forwards, rounded, widened
from .sampler import offsets
from .soft import collate_soft, soft_of
from .stream import Stream
from .weights import WEIGHTS, collate_weights, weights_of

Feature = dict[str, Any]
_VALUES = (list, np.ndarray)  # of a model input; arrays come from a stream, whose rows are not stored


class Mixture(Dataset[Feature]):
    """The rows of all datasets with a common numbering, see :func:`offsets`.

    A feature contains ``inputs`` for the model; ``labels`` by task, without tasks that have no label for the row;
    ``soft`` labels by task, if a teacher answers for the row; its ``weights`` by task, if it has any; the name of its
    ``dataset``, or None if the row only fills a batch; its ``row`` in the dataset; and its ``draw``, the step and the
    row number. A feature of a stream also contains its ``anchor``, see :meth:`Stream.fetch`.
    """

    def __init__(self, datasets: Sequence[Encoded | Stream]) -> None:
        self.datasets = list(datasets)
        self._offsets = offsets(self.sizes, self.streams)
        self._order = np.argsort(self._offsets, kind="stable")

    def lengths(self) -> dict[str, np.ndarray]:
        """Lengths of every row, by dataset; streams are left out."""
        return self._lengths

    @cached_property
    def _lengths(self) -> dict[str, np.ndarray]:
        return {dataset.name: np.array(dataset.lengths()) for dataset in self.datasets if isinstance(dataset, Encoded)}

    def costs(self, forwards: Forwards) -> dict[str, np.ndarray]:
        """The same in tokens, whatever the modality: how much of a forward pass a row takes."""
        readers = {dataset.name: dataset.reader for dataset in self.datasets if isinstance(dataset, Encoded)}
        return {
            name: rounded(of_rows)
            if forwards.rounded and readers[name].modality == TEXTS
            else of_rows / readers[name].grain
            for name, of_rows in self.lengths().items()
        }

    @property
    def streams(self) -> dict[str, Stream]:
        """The datasets that are streams."""
        return {dataset.name: dataset for dataset in self.datasets if isinstance(dataset, Stream)}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of rows of each dataset, by name; 0 for a stream of unknown size."""
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
        """A hash of the features of each dataset, without streams."""
        return {dataset.name: dataset.digest() for dataset in self.datasets if isinstance(dataset, Encoded)}

    def __len__(self) -> int:
        """Number of rows of all datasets, as far as it is known."""
        return sum(self.sizes.values())

    def __getitem__(self, row: int) -> Feature:
        """One row; ``~row`` is the same row without its labels, which only fills a batch."""
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Feature]:
        """Rows of a micro-batch, fetched together for each dataset; called by the loader of torch."""
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
                row["row"] = int(numbers[place] - self._offsets[which])
                draw = (getattr(rows[place], "step", 0), int(numbers[place]))
                features[place] = {**row, **extra, "dataset": dataset.name if counts else None, "draw": draw}
        return features


def feature(values: Row, tasks: Sequence[str]) -> Feature:
    """The model inputs, labels of some tasks, and soft labels and weights if there are any, for a row of a dataset."""
    soft = soft_of(values) if tasks else {}
    weights = weights_of(values, tasks)
    return {
        "inputs": {key: value for key, value in values.items() if isinstance(value, _VALUES) and ":" not in key},
        "labels": {task: values[label_column(task)] for task in tasks if values[label_column(task)] is not None},
        **({"soft": soft} if soft else {}),
        **({WEIGHTS: weights} if weights else {}),
    }


class MixtureCollator:
    """Collates features into a batch: padded model inputs, and by task its rows and their labels.

    Args:
        tokenizer: or the object that contains the processors of the tasks' readers; it pads the inputs.
        tasks: collate the labels, each its own.
        seed: for random changes of every (step, row), such as masks.
    """

    def __init__(self, tokenizer: object, tasks: Mapping[str, Task], *, seed: int = 0) -> None:
        self.tokenizer = tokenizer
        self.tasks = dict(tasks)
        # By the name of the input that has the length of a row, which is different for different modalities.
        self.readers = {task.reader.input_names[0]: task.reader for task in reversed(self.tasks.values())}
        self.seed = seed

    def __call__(self, features: Sequence[Feature], length: int = 0) -> dict[str, Any]:
        """Inputs (B, L, ...), and for tasks with rows here ``task_rows``, (N,) or (N, G), and ``labels``, (N, ...).

        Texts are padded to ``length`` tokens if they are shorter.

        Where a teacher answers or rows have weights, also the keys of :class:`hf_multitask.data.batch.SoftInputs` and
        :class:`hf_multitask.data.batch.WeightedInputs`.

        Raises:
            ValueError: the features are of several modalities.
        """
        features = [self._masked(feature) for feature in features]
        readers = {reader.modality: reader for reader in (self.reader(feature["inputs"]) for feature in features)}
        if len(readers) > 1:
            raise ValueError(f"A batch is of one modality. Found {', '.join(readers)}. Batch each by itself.")
        (reader,) = readers.values()
        flat: list[Inputs] = []
        places: list[list[int]] = []  # of each feature, its rows of the batch: several where it has several texts
        for feature in features:
            rows = _texts(feature["inputs"], reader)
            places.append(list(range(len(flat), len(flat) + len(rows))))
            flat += rows
        batch = reader.padded(self.tokenizer, flat)
        if reader.modality == TEXTS:
            batch = widened(batch, length, reader.processor(self.tokenizer))
        length = batch[reader.input_names[0]].shape[1]
        task_rows, labels = {}, {}
        soft: dict[str, dict[str, torch.Tensor]] = {"soft_rows": {}, "soft_labels": {}}
        weights: dict[str, dict[str, torch.Tensor]] = {"row_weights": {}, "soft_weights": {}}
        taught = any("soft" in feature for feature in features)
        features = [{"soft": {}, **feature} for feature in features] if taught else features
        present = {name for feature in features for name in (*feature["labels"], *feature.get("soft", ()))}
        for name in filter(present.__contains__, self.tasks):
            task = self.tasks[name]
            own = [number for number, feature in enumerate(features) if name in feature["labels"]]
            told = [number for number, feature in enumerate(features) if name in feature["soft"]] if taught else []
            more = [number for number in told if name not in features[number]["labels"]]
            most = max(len(places[number]) for number in (*own, *more))
            table = [places[number] + [-1] * (most - len(places[number])) for number in (*own, *more)]
            several = task.several or (task.windows_key is not None and most > 1)
            rows_of_task = torch.tensor(table) if several else torch.tensor([row[0] for row in table])
            if told:
                windows = most if several and task.labels_tokens else None
                answered = [features[number] for number in (*own, *more)]
                soft["soft_labels"][name] = collate_soft(task, answered, length, windows)
            if task.weight_column is not None:
                every = collate_weights(name, [features[number] for number in (*own, *more)])
                weights["row_weights"] |= {name: every[: len(own)]} if own else {}
                weights["soft_weights"] |= {name: every} if told else {}
            if more:
                soft["soft_rows"][name] = rows_of_task[len(own) :]
            if own:
                task_rows[name] = rows_of_task[: len(own)]
                values = [features[number]["labels"][name] for number in own]
                if several and task.labels_tokens:
                    flats = [features[number]["inputs"][WINDOWS] for number in own]
                    values = [
                        part
                        for value, lengths in zip(values, flats, strict=True)
                        for part in _split(value, lengths, most)
                    ]
                labels[name] = task.collate(values, length, "right")
                if several and task.labels_tokens:
                    labels[name] = labels[name].unflatten(0, (len(own), most))
        return {
            **batch,
            "task_rows": task_rows,
            "labels": labels,
            **{key: by_task for key, by_task in (*soft.items(), *weights.items()) if by_task},
        }

    def reader(self, inputs: Row) -> Reader:
        """The reader that made the inputs of a row.

        Raises:
            ValueError: there is none.
        """
        for name, reader in self.readers.items():
            if name in inputs:
                return reader
        raise ValueError(f"A row should have one of the inputs {', '.join(self.readers)}. Found {', '.join(inputs)}.")

    def mask_seeds(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """For rows that the backbone masks in training, the input ``mask_seeds`` (B,), of seed, step and row only."""
        if not self.reader(features[0]["inputs"]).masked:
            return {}
        draws = [np.random.SeedSequence([self.seed, 7, *feature["draw"]]) for feature in features]
        return {"mask_seeds": torch.tensor([int(draw.generate_state(1, np.uint64)[0] >> 1) for draw in draws])}

    def length(self, inputs: Row) -> int:
        """The length of the longest text of a row in tokens, or what another input costs in tokens."""
        if WINDOWS in inputs:
            return max(inputs[WINDOWS])
        reader = self.reader(inputs)
        return max(map(reader.length, _texts(inputs, reader)))

    def most(self, inputs: Row) -> int | None:
        """How many of these tokens, padding included, a forward pass of several such rows has at most; None for any."""
        reader = self.reader(inputs)
        most = reader.most(self.tokenizer)
        return None if most is None else most // reader.grain

    def _masked(self, feature: Feature) -> Feature:
        """A row with the random changes of its task, which depend on seed, step and row only."""
        for name, label in feature["labels"].items():
            task = self.tasks[name]
            if task.masks:
                generator = np.random.default_rng([self.seed, 6, *feature.get("draw", (0, 0))])
                processor = task.reader.processor(self.tokenizer)
                inputs, label = task.masked(feature["inputs"], label, processor, generator)
                feature = {**feature, "inputs": inputs, "labels": {**feature["labels"], name: label}}
        return feature


def _texts(inputs: Row, reader: Reader) -> list[Inputs]:
    """The texts of a row, or the windows of its text, or what else it holds, as model inputs each."""
    if WINDOWS in inputs:
        lengths = inputs[WINDOWS]
        rest = {name: values for name, values in inputs.items() if name != WINDOWS}
        if len(lengths) == 1:
            return [rest]
        return rows_of({name: list(_split(values, lengths, len(lengths))) for name, values in rest.items()})
    value = inputs[reader.input_names[0]]
    for _ in range(reader.dimensions):
        value = value[0] if len(value) else None
        if not isinstance(value, _VALUES):
            return [dict(inputs)]
    return rows_of(inputs)


def _split(values: Sequence[int], lengths: Sequence[int], count: int) -> Iterator[list[int]]:
    """Concatenated values split by window; missing windows up to ``count`` are empty."""
    start = 0
    for length in [*lengths, *[0] * (count - len(lengths))]:
        yield list(values[start : start + length])
        start += length
