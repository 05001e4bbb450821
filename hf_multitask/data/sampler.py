"""The step sampler: selects the rows of every optimizer step, independent of accumulation and number of ranks."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from heapq import nlargest
from operator import add

import numpy as np
from torch.utils.data import Sampler

from .rates import SamplingRates


@dataclass(frozen=True)
class Share:
    """One line of the plan: the share of a dataset in a training run."""

    name: str
    rows: int
    share: float
    drawn: int

    @property
    def passes(self) -> float:
        """How often each row is drawn on average; NaN if the number of rows is unknown."""
        return self.drawn / self.rows if self.rows else math.nan


def offsets(sizes: Mapping[str, int], streams: Collection[str] = ()) -> np.ndarray:
    """The number of the first row of every dataset, (K,).

    Rows of ordinary datasets are numbered consecutively. Each stream has a separate range above them, in which its rows
    are numbered over all of its passes.
    """
    ends_K = np.cumsum([0 if name in streams else size for name, size in sizes.items()])
    number = iter(range(1, len(sizes) + 1))
    return np.array(
        [
            next(number) << 40 if name in streams else int(end) - size
            for (name, size), end in zip(sizes.items(), ends_K, strict=True)
        ],
        dtype=np.int64,
    )


class Draw(int):
    """The number of a row, with the optimizer step for which it is drawn, counted over all epochs."""

    step: int

    def __new__(cls, row: int, step: int) -> Draw:
        """Row ``row``, drawn for step ``step``."""
        drawn = super().__new__(cls, row)
        drawn.step = step
        return drawn

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        """The arguments for unpickling in a worker of the loader."""
        return int(self), self.step


class StepSampler(Sampler[list[int]]):
    """Draws optimizer steps from a mixture and distributes each over ranks and micro-batches.

    A row is a number, see :func:`offsets`. Every step contains the share of each dataset, rounded down or up; the
    dataset that is furthest behind is rounded up (largest remainder), and ties and the start are random. The rows of a
    dataset are drawn in endless shuffled passes, so an epoch of proportional sampling contains each row once. An epoch
    has ceil(rows / rows of a step) steps and as many rows as the data, whatever the shares.

    If lengths are given, rows are sorted by length within windows of steps and distributed so that a step contains rows
    of the same length rank from each dataset; the order of short and long steps is random. The number of rows per
    dataset does not change. Ranks get rows of every length, the micro-batches of a rank get rows of similar length.

    The rows of a stream keep their order, so a step contains the next ones, and they have no lengths. With a stream of
    unknown size, all steps are one epoch.

    The steps are a function of the seed, the epoch and the datasets that have left: they are the same for any number of
    ranks and micro-batches.

    Args:
        sizes: rows of each dataset; 0 for a stream of unknown size.
        rates: their shares.
        streams: names of the datasets that are streams.
        lengths: number of tokens of every row of each dataset, or what the row costs in tokens, without streams.
        window: number of steps of a window.
        rows_per_step: W x A x R rows: ranks, accumulation, batch size per device.
        total_steps: optimizer steps of the whole training, for shares that change during training; those of one epoch
            if None.
        accumulation: A, micro-batches of a step on each rank.
        world_size: W, the number of ranks.
        rank: the index of this rank.
        seed: for the order and the rounding.

    Raises:
        ValueError: a rate is negative or not finite, or all are zero; or a required size is unknown.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        rates: SamplingRates,
        *,
        streams: Collection[str] = (),
        lengths: Mapping[str, np.ndarray] | None = None,
        window: int = 50,
        rows_per_step: int,
        total_steps: int | None = None,
        accumulation: int = 1,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        self.sizes = dict(sizes)
        self.rates = rates
        self.window = window
        self.sort_by(lengths)
        self.rows_per_step, self.accumulation = rows_per_step, accumulation
        self.world_size, self.rank, self.seed = world_size, rank, seed
        self._names = list(self.sizes)
        self.streams = frozenset(streams)
        self._offsets_K = offsets(self.sizes, self.streams)
        unknown = [name for name, size in self.sizes.items() if not size]
        if unknown and (not total_steps or rates.needs_sizes):
            raise ValueError(
                f"The number of rows of the stream '{unknown[0]}' is unknown. Set max_steps, and a sampling without "
                "sizes: uniform or fixed; or set its info.splits."
            )
        self.total = rows_per_step * (total_steps or 0) if unknown else sum(self.sizes.values())
        self.steps_per_epoch = -(-self.total // rows_per_step)
        self.total_steps = total_steps or self.steps_per_epoch
        self.epoch = 0
        self._left: dict[str, int] = {}
        self._passes: dict[str, tuple[int, np.ndarray]] = {}
        self._changing = type(rates).rates_at is not SamplingRates.rates_at
        self._shares_K = self._shares(0.0)
        # By epoch: the rows of each dataset that were drawn before it, and how far each is behind its share.
        behind_K = np.random.default_rng([seed, 1]).uniform(0, 1e-6, len(self.sizes))
        self._starts = [(np.zeros(len(self.sizes), dtype=np.int64), behind_K)]
        if self._changing:
            self._shares(1.0)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def sort_by(self, lengths: Mapping[str, np.ndarray] | None) -> None:
        """Set the lengths by which the next iteration sorts rows."""
        self.lengths = lengths
        self._lengths_of_rows = None if not lengths else np.concatenate(list(lengths.values()))

    def leave(self, name: str, epoch: int) -> None:
        """Draw no rows of a dataset from an epoch on, and distribute its share over the others."""
        self._left[name] = epoch
        del self._starts[epoch + 1 :]

    def __len__(self) -> int:
        """Number of micro-batches of one rank in an epoch."""
        return self.steps_per_epoch * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """Micro-batches of this rank; a negative number ``~row`` is a filler row, whose labels do not count."""
        for step, rows in enumerate(self.steps(self.epoch), self.epoch * self.steps_per_epoch):
            for micro_batch in np.array_split(self._rows_of_rank(rows), self.accumulation):
                yield [Draw(row, step) for row in micro_batch.tolist()] or [~int(rows[0])]

    def _rows_of_rank(self, rows: np.ndarray) -> np.ndarray:
        """The rows of this rank in a step, the longest first; all ranks get equal rows and nearly equal tokens."""
        if self._lengths_of_rows is None or self.world_size * self.accumulation == 1:
            return rows[self.rank :: self.world_size]
        lengths = np.where(rows < len(self._lengths_of_rows), rows, 0)
        lengths = np.where(rows < len(self._lengths_of_rows), self._lengths_of_rows[lengths], 0)
        rows = rows[np.argsort(-lengths, kind="stable")]
        # Distributed in alternating order: 0 1 2 2 1 0 0 1 2 ...
        turn, place = np.divmod(np.arange(len(rows)), self.world_size)
        return rows[np.where(turn % 2, self.world_size - 1 - place, place) == self.rank]

    def steps(self, epoch: int) -> Iterator[np.ndarray]:
        """The rows of every step of an epoch over all ranks, (rows_per_step,), or fewer in the last step."""
        cursors_K = self._start(epoch)[0].copy()
        for first, window_SK in self._windows(epoch, self._start(epoch)[1].copy()):
            drawn_K = window_SK.sum(0)
            dealt = [
                self._deal(k, int(cursors_K[k]), window_SK[:, k], (epoch, first))
                for k in np.flatnonzero(drawn_K).tolist()
            ]
            cursors_K += drawn_K
            for step in range(len(window_SK)):
                rows = np.concatenate([of_dataset[step] for of_dataset in dealt])
                yield np.random.default_rng([self.seed, 2, epoch, first + step]).permutation(rows)

    def _deal(self, k: int, start: int, quotas_S: np.ndarray, window: tuple[int, int]) -> list[np.ndarray]:
        """The rows of dataset k in each step of a window."""
        rows = self._draw(k, start, int(quotas_S.sum()))
        order_S = np.arange(len(quotas_S))
        if self.lengths is not None and self._names[k] not in self.streams:
            rows = rows[np.argsort(self.lengths[self._names[k]][rows], kind="stable")]
            # The same order for every dataset, so that short rows are combined with short rows.
            order_S = np.random.default_rng([self.seed, 4, *window]).permutation(len(quotas_S))
        dealt = [rows] * len(quotas_S)
        for step, chunk in zip(order_S, np.split(rows, np.cumsum(quotas_S[order_S])[:-1]), strict=True):
            dealt[step] = self._offsets_K[k] + chunk
        return dealt

    def plan(self, steps: int) -> list[Share]:
        """The share of each dataset in a run with this number of optimizer steps."""
        drawn_K = np.zeros(len(self.sizes), dtype=np.int64)
        for epoch in range(-(-steps // self.steps_per_epoch)):
            left = steps - epoch * self.steps_per_epoch
            if left >= self.steps_per_epoch:
                drawn_K = self._start(epoch + 1)[0]
                continue
            for first, window_SK in self._windows(epoch, self._start(epoch)[1].copy()):
                if first >= left:
                    break
                drawn_K = drawn_K + window_SK[: left - first].sum(0)
        return shares_of(self.sizes, dict(zip(self.sizes, drawn_K.tolist(), strict=True)))

    def _start(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        while len(self._starts) <= epoch:
            drawn_K, behind_K = (part.copy() for part in self._starts[-1])
            for _, window_SK in self._windows(len(self._starts) - 1, behind_K):
                drawn_K += window_SK.sum(0)
            self._starts.append((drawn_K, behind_K))
        return self._starts[epoch]

    def _shares(self, progress: float) -> np.ndarray:
        """Normalized share of each dataset, (K,), according to the rates."""
        rates = self.rates.rates_at(self.sizes, progress)
        shares_K = np.array([rates.get(name, 0.0) for name in self._names], dtype=np.float64)
        if not np.isfinite(shares_K).all() or (shares_K < 0).any() or not shares_K.sum():
            raise ValueError(f"Sampling rates should be 0 or more and sum to more than 0. Found {rates}.")
        return shares_K / shares_K.sum()

    def _shares_of_step(self, epoch: int, step: int, stays_K: np.ndarray) -> np.ndarray:
        shares_K = self._shares_K
        if self._changing:
            done = epoch * self.steps_per_epoch + step
            shares_K = self._shares(min(done / max(self.total_steps - 1, 1), 1.0))
        if stays_K.all() or not shares_K[stays_K].sum():
            return shares_K
        return np.where(stays_K, shares_K, 0.0) / shares_K[stays_K].sum()

    def _windows(self, epoch: int, behind_K: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """The first step of every window of an epoch, and the number of rows of each dataset in its steps, (S, K).

        ``behind_K``, how far each dataset is behind its share, is updated. Plain numbers are used, and what is the same
        for all steps is computed once, so that a million steps are counted in seconds.
        """
        stays_K = np.array([self._left.get(name, epoch + 1) > epoch for name in self._names])
        behind_K[~stays_K] = 0.0
        shares_K = self._shares_of_step(epoch, 0, stays_K)
        divided = 0  # rows of the steps whose division is known
        for first in range(0, self.steps_per_epoch, self.window):
            behind = behind_K.tolist()
            quotas = []
            for step in range(first, min(first + self.window, self.steps_per_epoch)):
                rows = min(self.rows_per_step, self.total - step * self.rows_per_step)
                if self._changing:
                    shares_K = self._shares_of_step(epoch, step, stays_K)
                if self._changing or rows != divided:
                    wanted_K = shares_K * rows
                    whole_K = (wanted_K + 1e-9).astype(np.int64)
                    whole, rest = whole_K.tolist(), (wanted_K - whole_K).tolist()
                    # Only a dataset with a fraction is rounded up, so that every quota is within one row of its share.
                    due = [k for k, fraction in enumerate(rest) if fraction > 1e-9]
                    divided, left = rows, rows - sum(whole)
                behind = list(map(add, behind, rest))
                quota = whole.copy()
                for k in nlargest(left, due, key=behind.__getitem__) if left else ():
                    quota[k] += 1
                    behind[k] -= 1
                quotas.append(quota)
            behind_K[:] = behind
            yield first, np.array(quotas, dtype=np.int64)

    def _draw(self, k: int, start: int, count: int) -> np.ndarray:
        """``count`` rows of dataset k, beginning at position ``start`` of its endless passes."""
        name = self._names[k]
        if name in self.streams:
            return np.arange(start, start + count)
        size = self.sizes[name]
        drawn = []
        while count:
            one_pass, place = divmod(start, size)
            rows = self._permutation(name, size, one_pass)[place : place + count]
            drawn.append(rows)
            start, count = start + len(rows), count - len(rows)
        return np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)

    def _permutation(self, name: str, size: int, one_pass: int) -> np.ndarray:
        if self._passes.get(name, (None,))[0] != one_pass:
            key = zlib.crc32(name.encode())
            self._passes[name] = (one_pass, np.random.default_rng([self.seed, 3, key, one_pass]).permutation(size))
        return self._passes[name][1]


def shares_of(sizes: Mapping[str, int], drawn: Mapping[str, int]) -> list[Share]:
    """Lines of a plan, before or after training, from the number of rows drawn from each dataset."""
    total = max(sum(drawn.values()), 1)
    return [Share(name, size, drawn.get(name, 0) / total, drawn.get(name, 0)) for name, size in sizes.items()]
