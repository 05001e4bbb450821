"""Streams: datasets that are read from their beginning on, in their own order, and resumed in their middle."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_CHUNK = 32  # rows read between two states
_HEAD = 10
# The parts of a stream, by the names that datasets gives them, which hold as many rows as what they read from.
_SAME_COUNT = (
    "ExamplesIterable",
    "ArrowExamplesIterable",
    "RebatchedArrowExamplesIterable",
    "SelectColumnsIterable",
    "FormattedExamplesIterable",
    "BufferShuffledExamplesIterable",
    "InterleavedShardsExamplesIterable",
)
# Those whose state does not bring back what they hold in memory.
_FORGETFUL = ("BufferShuffledExamplesIterable",)


class StreamError(ValueError):
    """A stream broke off, or does not hold the rows that it held; the sentence names the task and the row."""


def first_rows(stream: IterableDataset) -> Dataset:
    """The first few rows of a stream, at most ten, which tell its columns and what they hold."""
    from datasets import Dataset

    return Dataset.from_list(list(stream.with_format(None).take(_HEAD)), features=stream.features)


def declared_rows(stream: IterableDataset) -> int:
    """Rows that a stream says it has, in ``info.splits``; 0 where it does not, or where a step on the way, such as a
    filter, leaves fewer or more than was said.
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
    """Whether a stream's ``state_dict`` brings back the very next row; a shuffle buffer's does not."""
    return not any(type(part).__name__ in _FORGETFUL for part in _parts(stream))


def _parts(stream: Any) -> Iterator[Any]:
    waiting = [stream._ex_iterable]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += [part.ex_iterable] if hasattr(part, "ex_iterable") else getattr(part, "ex_iterables", [])


class Stream:
    """A stream of raw rows that become features when a micro-batch asks for them.

    Its rows are numbered through its endless passes, in the order in which it yields them. Every process that loads
    reads all of them, and tokenises those it is asked for. Rows may be asked for in any order within ``keep`` of each
    other; those further back cost a start from the ``anchor``.

    Args:
        name: name of the group of tasks.
        dataset: raw rows; pass p reads it with ``set_epoch(p)``.
        tasks: names of the tasks.
        features: turns columns of raw rows, and their numbers in a pass, into columns of features.
        columns: that it reads.
        size: rows of a pass; 0 where it is known only at its end.

    ``keeps_place`` says whether reading can begin inside a pass.
    """

    def __init__(
        self,
        name: str,
        dataset: IterableDataset,
        tasks: Sequence[str],
        features: Callable[[dict[str, list[Any]], list[int]], dict[str, list[Any]]],
        columns: Sequence[str],
        size: int,
    ) -> None:
        self.name, self.dataset, self.tasks, self.size = name, dataset, list(tasks), size
        self.features, self.columns = features, list(columns)
        self.keep = 1
        # A row before which reading can begin: its number, the number of the pass's first row, the pass, the state of
        # the dataset, None at the beginning of a pass, and a hash of the row.
        self.anchor: dict[str, Any] | None = None
        self.keeps_place = keeps_place(dataset)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """What goes to a worker: all but where this process reads."""
        return {key: value for key, value in vars(self).items() if key not in _READING}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._batches: Iterator[dict[str, list[Any]]] | None = None
        self._anchors: list[dict[str, Any]] = []
        self._rows: deque[tuple[dict[str, Any], int]] = deque()
        self._next = self._first = self._pass = 0

    def begin_at(self, anchor: dict[str, Any] | None) -> None:
        """Read from there on, or from the first row, when a row is asked for next."""
        self.anchor = anchor
        self._forget()

    def fetch(self, numbers: Sequence[int]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        """Columns of features of some rows, and a row not after their last from which all later ones can be read.

        Raises:
            StreamError: the stream broke off before the last of them, or is another one than the anchor's.
            ValueError: a row is not usable.
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
        """Forget what is further back than rows near this one need."""
        while len(self._rows) > max(self._next - number + self.keep, 0):
            self._rows.popleft()
        while len(self._anchors) > 1 and self._anchors[1]["row"] <= number:
            del self._anchors[0]

    def _start(self, number: int) -> None:
        """Begin to read, no later than at a row."""
        self._forget()
        anchor = self.anchor
        if anchor is not None and anchor["row"] > number:
            anchor = None
        one_pass = number // self.size if self.size else 0
        if anchor is None or anchor["pass"] < one_pass:
            anchor = {"row": one_pass * self.size, "first": one_pass * self.size, "pass": one_pass, "state": None}
        self._open(anchor)

    def _open(self, anchor: dict[str, Any]) -> None:
        # A copy, as processes that were forked share the number of the pass.
        self._dataset = self.dataset.with_format(None)
        self._dataset.set_epoch(anchor["pass"])
        if anchor["state"] is not None:
            self._dataset.load_state_dict(anchor["state"])
        self._next, self._first, self._pass = anchor["row"], anchor["first"], anchor["pass"]
        self._state, self._expected = anchor["state"], anchor.get("hash")
        self._batches = iter(self._dataset.iter(batch_size=_CHUNK))

    def _read(self) -> None:
        """Read one more chunk, or begin the next pass."""
        place = self._next - self._first
        batch = None
        if not self.size or place < self.size:
            try:
                batch = next(self._batches, None)  # type: ignore[arg-type]
            except Exception as problem:
                if self._expected is not None and isinstance(problem, KeyError | IndexError | TypeError):
                    raise self._error(
                        f"row {place} is not found again, as the stream is not built as it was when the checkpoint was "
                        "written. Put it back"
                    ) from problem
                said = " ".join(str(problem).split()) or type(problem).__name__
                end = min(place + _CHUNK, self.size or place + _CHUNK)
                raise self._error(
                    f"one of its rows {place} to {end - 1} could not be read ({type(problem).__name__}: {said}). "
                    "Mend the stream"
                ) from problem
            if batch is None and (self.size or not place):
                raise self._error(
                    f"the stream ends before row {place}, and it declares {self.size} rows. Declare as many as it has "
                    "in info.splits, and set ignore_data_skip=True, as that is another order of rows"
                    if self.size
                    else "the stream has no rows. Add some"
                )
        if batch is None:
            self._open({"row": self._next, "first": self._next, "pass": self._pass + 1, "state": None})
            return
        missing = [column for column in self.columns if column not in batch]
        if missing:
            raise self._error(f"row {place} has no column '{missing[0]}'. Mend the row")
        rows = [
            dict(zip(self.columns, row, strict=True)) for row in zip(*(batch[c] for c in self.columns), strict=True)
        ]
        if self.size:
            rows = rows[: self.size - place]
        digest = hashlib.blake2b(repr(rows[0]).encode(), digest_size=8).hexdigest()
        if self._expected not in (None, digest):
            raise self._error(
                f"row {place} is not the one that stood there when the checkpoint was written. Put the stream back "
                "as it was"
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
            f"{which}{in_pass}: {sentence}, then go on from the last checkpoint with resume_from_checkpoint=True."
        )


_READING = ("_batches", "_anchors", "_rows", "_next", "_first", "_pass", "_dataset", "_state", "_expected")
