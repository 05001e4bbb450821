"""Streaming datasets, which are read in their own order, and resumed at any row."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from ..tasks.columns import Columns

_CHUNK = 32  # number of rows that are read between two states
_HEAD = 10
# A row at which reading can begin: its number, the number of the first row of the pass, the pass, the state of the
# dataset (None at the beginning of a pass), and a hash of the row.
Anchor = dict[str, Any]
# The parts of a stream, by their class names in datasets, that do not change the number of rows.
_SAME_COUNT = (
    "ExamplesIterable",
    "ArrowExamplesIterable",
    "RebatchedArrowExamplesIterable",
    "SelectColumnsIterable",
    "FormattedExamplesIterable",
    "BufferShuffledExamplesIterable",
    "InterleavedShardsExamplesIterable",
)
# The parts whose state does not include the rows that they hold in memory.
_FORGETFUL = ("BufferShuffledExamplesIterable",)


class StreamError(ValueError):
    """A stream failed, or its rows have changed; the message names the task and the row."""


def first_rows(stream: IterableDataset) -> Dataset:
    """The first rows of a stream, at most ten, which show its columns and their types."""
    from ..tasks.recordings import dataset_of, undecoded

    stream = undecoded(stream).with_format(None)
    return dataset_of(list(stream.take(_HEAD)), stream.features)


def declared_rows(stream: IterableDataset) -> int:
    """The number of rows that a stream declares in ``info.splits``; 0 if it does not, or if an operation, such as a
    filter, may change the number.
    """
    splits = dict(stream.info.splits or {})
    split = splits.get(str(stream.split), next(iter(splits.values())) if len(splits) == 1 else None)
    rows = (split.num_examples or 0) if split is not None else 0
    fewest: int | None = None
    for part in _parts(stream):
        kind = type(part).__name__
        if kind == "TakeExamplesIterable":
            fewest = part.n if fewest is None else min(fewest, part.n)
        elif kind not in _SAME_COUNT and not (kind == "MappedExamplesIterable" and not part.batched):
            return 0
    return rows if fewest is None or not rows else min(rows, fewest)


def keeps_place(stream: IterableDataset) -> bool:
    """Whether the ``state_dict`` of a stream restores the exact next row; that of a shuffle buffer does not."""
    return not any(type(part).__name__ in _FORGETFUL for part in _parts(stream))


def _parts(stream: IterableDataset) -> Iterator[Any]:
    waiting = [stream._ex_iterable]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += [part.ex_iterable] if hasattr(part, "ex_iterable") else getattr(part, "ex_iterables", [])


class Stream:
    """A stream of raw rows that are converted to features when a micro-batch needs them.

    Its rows are numbered over its endless passes, in the order of the stream. Every process that loads data reads all
    rows, and tokenizes the requested ones. Rows may be requested in any order within ``keep`` of each other; for rows
    further back, the stream is read again from the ``anchor``.

    Args:
        name: name of the group of tasks.
        dataset: raw rows; pass p reads it with ``set_epoch(p)``.
        tasks: names of the tasks.
        features: converts columns of raw rows, and their indices in a pass, into columns of features.
        columns: the columns that it reads.
        size: number of rows of a pass; 0 if it is not known before its end.

    ``keeps_place`` says whether reading can begin in the middle of a pass.
    """

    def __init__(
        self,
        name: str,
        dataset: IterableDataset,
        tasks: Sequence[str],
        features: Callable[[Columns, list[int]], Columns],
        columns: Sequence[str],
        size: int,
    ) -> None:
        self.name, self.dataset, self.tasks, self.size = name, dataset, list(tasks), size
        self.features, self.columns = features, list(columns)
        self.keep = 1
        self.anchor: Anchor | None = None
        self.keeps_place = keeps_place(dataset)
        self._forget()

    def __getstate__(self) -> dict[str, object]:
        """The state for a worker: everything except the reading position of this process."""
        return {key: value for key, value in vars(self).items() if key not in _READING}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._batches: Iterator[Columns] | None = None
        self._anchors: list[Anchor] = []
        self._rows: deque[tuple[dict[str, object], int]] = deque()
        self._next = self._first = self._pass = 0

    def begin_at(self, anchor: Anchor | None) -> None:
        """Read from the anchor, or from the first row, when a row is requested next."""
        self.anchor = anchor
        self._forget()

    def fetch(self, numbers: Sequence[int]) -> tuple[Columns, Anchor]:
        """Columns of features of some rows, and an anchor from which all later rows can be read.

        Raises:
            StreamError: the stream ended before the last row, or differs from that of the anchor.
            ValueError: a row is invalid.
        """
        last = max(numbers)
        if self._batches is None or min(numbers) < self._next - len(self._rows):
            self._start(min(numbers))
        while self._next <= last:
            self._read()
            self._drop(min(numbers))
        start = self._next - len(self._rows)
        found = [self._rows[number - start] for number in numbers]
        rows = {column: [row[column] for row, _ in found] for column in self.columns}
        features = self.features(rows, [place for _, place in found])
        self._drop(last)
        return features, self._anchors[0]

    def _drop(self, number: int) -> None:
        """Remove stored rows that are too far before this one."""
        while len(self._rows) > max(self._next - number + self.keep, 0):
            self._rows.popleft()
        while len(self._anchors) > 1 and self._anchors[1]["row"] <= number:
            del self._anchors[0]

    def _start(self, number: int) -> None:
        """Begin to read at a row or before it."""
        self._forget()
        anchor = self.anchor
        if anchor is not None and anchor["row"] > number:
            anchor = None
        one_pass = number // self.size if self.size else 0
        if anchor is None or anchor["pass"] < one_pass:
            anchor = {"row": one_pass * self.size, "first": one_pass * self.size, "pass": one_pass, "state": None}
        self._open(anchor)

    def _open(self, anchor: Anchor) -> None:
        # A copy, because forked processes share the number of the pass.
        self._dataset = self.dataset.with_format(None)
        self._dataset.set_epoch(anchor["pass"])
        if anchor["state"] is not None:
            self._dataset.load_state_dict(anchor["state"])
        self._next, self._first, self._pass = anchor["row"], anchor["first"], anchor["pass"]
        self._state, self._expected = anchor["state"], anchor.get("hash")
        self._batches = iter(self._dataset.iter(batch_size=_CHUNK))

    def _read(self) -> None:
        """Read the next chunk, or begin the next pass."""
        place = self._next - self._first
        batch = None
        if not self.size or place < self.size:
            try:
                batch = next(self._batches, None)  # type: ignore[arg-type]
            except Exception as problem:
                if self._expected is not None and isinstance(problem, KeyError | IndexError | TypeError):
                    raise self._error(
                        f"row {place} cannot be found, because the stream has changed since the checkpoint was "
                        "written. Restore the stream"
                    ) from problem
                said = " ".join(str(problem).split()) or type(problem).__name__
                end = min(place + _CHUNK, self.size or place + _CHUNK)
                raise self._error(
                    f"one of its rows {place} to {end - 1} could not be read ({type(problem).__name__}: {said}). "
                    "Fix the stream"
                ) from problem
            if batch is None and (self.size or not place):
                raise self._error(
                    f"the stream ends before row {place}, but it declares {self.size} rows. Declare its number of rows "
                    "in info.splits, and set ignore_data_skip=True, because the order of rows changes"
                    if self.size
                    else "the stream has no rows. Add some"
                )
        if batch is None:
            self._open({"row": self._next, "first": self._next, "pass": self._pass + 1, "state": None})
            return
        missing = [column for column in self.columns if column not in batch]
        if missing:
            raise self._error(f"row {place} has no column '{missing[0]}'. Fix the row")
        rows = [
            dict(zip(self.columns, row, strict=True)) for row in zip(*(batch[c] for c in self.columns), strict=True)
        ]
        if self.size:
            rows = rows[: self.size - place]
        digest = hashlib.blake2b(repr(rows[0]).encode(), digest_size=8).hexdigest()
        if self._expected not in (None, digest):
            raise self._error(
                f"row {place} differs from the row at this position when the checkpoint was written. Restore the stream"
            )
        self._expected = None
        if self.keeps_place or not place:
            self._anchors.append(
                {
                    "row": self._next,
                    "first": self._first,
                    "pass": self._pass,
                    "state": self._state if place else None,
                    "hash": digest,
                }
            )
        self._rows.extend((row, place + number) for number, row in enumerate(rows))
        self._next += len(rows)
        self._state = self._dataset.state_dict() if self.keeps_place else None

    def _error(self, sentence: str) -> StreamError:
        which = f"Task '{self.tasks[0]}', dataset '{self.name}'" if self.tasks else f"Dataset '{self.name}'"
        in_pass = f" (pass {self._pass + 1})" if self._pass else ""
        return StreamError(
            f"{which}{in_pass}: {sentence}, then resume from the last checkpoint with resume_from_checkpoint=True."
        )


_READING = ("_batches", "_anchors", "_rows", "_next", "_first", "_pass", "_dataset", "_state", "_expected")
