"""The step sampler: which rows every optimizer step sees, whatever the accumulation and the number of ranks."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from .rates import SamplingRates


@dataclass(frozen=True)
class Share:
    """One line of the plan: what a dataset gets of a training run."""

    name: str
    rows: int
    share: float
    drawn: int

    @property
    def passes(self) -> float:
        """How often each row is seen, on average; not a number where nobody knows how many there are."""
        return self.drawn / self.rows if self.rows else math.nan


def offsets(sizes: Mapping[str, int], streams: Collection[str] = ()) -> np.ndarray:
    """The number of the first row of every dataset, (K,).

    Rows of ordinary datasets are numbered one dataset after the other. Each stream has a range of its own above them,
    in which its rows are numbered through all of its passes.
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
    """The number of a row that knows the optimizer step it is drawn for, counted over all epochs."""

    step: int

    def __new__(cls, row: int, step: int) -> Draw:
        """Row ``row``, drawn for step ``step``."""
        drawn = super().__new__(cls, row)
        drawn.step = step
        return drawn

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        """What a loader's worker makes it from again."""
        return int(self), self.step


class StepSampler(Sampler[list[int]]):
    """Draws optimizer steps from a mixture and deals each to ranks and micro-batches.

    A row is a number, see :func:`offsets`. Every step holds, of each dataset, its share of the rows,
    rounded down or up; who is rounded up is whoever is furthest behind (largest remainder), ties and the start being
    drawn from the seed. A dataset's rows come in shuffled passes without end, so an epoch of proportional sampling sees
    each row once. An epoch has ceil(rows / rows of a step) steps and as many rows as the data, whatever the shares.

    Where lengths are given, rows are sorted by length within windows of steps and dealt so that a step holds, of each
    dataset, rows of the same rank in length; which step gets the short ones is drawn. Quotas are not touched. Ranks get
    rows of every length, the micro-batches of a rank rows of similar length.

    The rows of a stream come in its own order, so a step holds the next ones, and they have no lengths. With a stream
    that does not say its size all steps are one epoch.

    The steps are a pure function of (seed, epoch, who has left): another number of ranks or micro-batches deals the
    same steps.

    Args:
        sizes: rows of each dataset; 0 of a stream that does not say.
        rates: their shares.
        streams: names of the datasets that are streams.
        lengths: tokens of every row of each dataset but the streams.
        window: steps of a window.
        rows_per_step: W x A x R rows: ranks, accumulation, batch of a device.
        total_steps: optimizer steps of the whole training, for shares that change on the way; those of one epoch where
            None.
        accumulation: A, micro-batches of a step on each rank.
        world_size: W.
        rank: which of the W this is.
        seed: of the order and the rounding.

    Raises:
        ValueError: a rate is negative, not finite, or all are zero; or a size is needed that nobody knows.
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
        self.lengths, self.window = lengths, window
        self.rows_per_step, self.accumulation = rows_per_step, accumulation
        self.world_size, self.rank, self.seed = world_size, rank, seed
        self._names = list(self.sizes)
        self.streams = frozenset(streams)
        self._lengths_of_rows = None if not lengths else np.concatenate(list(lengths.values()))
        self._offsets_K = offsets(self.sizes, self.streams)
        unknown = [name for name, size in self.sizes.items() if not size]
        if unknown and (not total_steps or rates.needs_sizes):
            raise ValueError(
                f"The stream '{unknown[0]}' does not say how many rows it has. Set max_steps, and a sampling without "
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
        # By epoch: rows drawn of each dataset before it, and how far each is behind its share.
        behind_K = np.random.default_rng([seed, 1]).uniform(0, 1e-6, len(self.sizes))
        self._starts = [(np.zeros(len(self.sizes), dtype=np.int64), behind_K)]
        if self._changing:
            self._shares(1.0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that iteration yields."""
        self.epoch = epoch

    def leave(self, name: str, epoch: int) -> None:
        """Draw nothing of a dataset from an epoch on, and give its share to the others."""
        self._left[name] = epoch
        del self._starts[epoch + 1 :]

    def __len__(self) -> int:
        """Micro-batches that one rank gets in an epoch."""
        return self.steps_per_epoch * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """Micro-batches of this rank; a negative number ``~row`` is filler, a row whose labels do not count."""
        for step, rows in enumerate(self.steps(self.epoch), self.epoch * self.steps_per_epoch):
            for micro_batch in np.array_split(self._rows_of_rank(rows), self.accumulation):
                yield [Draw(row, step) for row in micro_batch.tolist()] or [~int(rows[0])]

    def _rows_of_rank(self, rows: np.ndarray) -> np.ndarray:
        """What this rank gets of a step: as many rows as the others, and nearly as many tokens; the longest first."""
        if self._lengths_of_rows is None or self.world_size * self.accumulation == 1:
            return rows[self.rank :: self.world_size]
        lengths = np.where(rows < len(self._lengths_of_rows), rows, 0)
        lengths = np.where(rows < len(self._lengths_of_rows), self._lengths_of_rows[lengths], 0)
        rows = rows[np.argsort(-lengths, kind="stable")]
        # Dealt to and fro, as cards are: 0 1 2 2 1 0 0 1 2 ...
        turn, place = np.divmod(np.arange(len(rows)), self.world_size)
        return rows[np.where(turn % 2, self.world_size - 1 - place, place) == self.rank]

    def steps(self, epoch: int) -> Iterator[np.ndarray]:
        """The rows of every step of an epoch, over all ranks, each (rows_per_step,) or fewer in the last."""
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
            # The same order for every dataset, so that short rows meet short rows.
            order_S = np.random.default_rng([self.seed, 4, *window]).permutation(len(quotas_S))
        dealt = [rows] * len(quotas_S)
        for step, chunk in zip(order_S, np.split(rows, np.cumsum(quotas_S[order_S])[:-1]), strict=True):
            dealt[step] = self._offsets_K[k] + chunk
        return dealt

    def plan(self, steps: int) -> list[Share]:
        """What each dataset gets in a run of so many optimizer steps."""
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
        """Share of each dataset that has not left by then, (K,), as the rates have it."""
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
        """The first step of every window of an epoch, and the rows of each dataset in its steps, (S, K).

        ``behind_K``, how far each dataset is behind its share, goes along. Plain numbers: a million steps are counted
        in seconds.
        """
        stays_K = np.array([self._left.get(name, epoch + 1) > epoch for name in self._names])
        behind_K[~stays_K] = 0.0
        shares_K = self._shares_of_step(epoch, 0, stays_K).tolist()
        places = range(len(shares_K))
        for first in range(0, self.steps_per_epoch, self.window):
            behind = behind_K.tolist()
            quotas = []
            for step in range(first, min(first + self.window, self.steps_per_epoch)):
                rows = min(self.rows_per_step, self.total - step * self.rows_per_step)
                if self._changing:
                    shares_K = self._shares_of_step(epoch, step, stays_K).tolist()
                quota, due = [], []
                for k in places:
                    wanted = shares_K[k] * rows
                    whole = int(wanted + 1e-9)
                    quota.append(whole)
                    behind[k] += wanted - whole
                    # Only a dataset with a fraction may be rounded up, so that every quota stays within one row of its
                    # share.
                    if wanted - whole > 1e-9:
                        due.append(k)
                left = rows - sum(quota)
                for k in sorted(due, key=behind.__getitem__, reverse=True)[:left] if left else ():
                    quota[k] += 1
                    behind[k] -= 1
                quotas.append(quota)
            behind_K[:] = behind
            yield first, np.array(quotas, dtype=np.int64)

    def _draw(self, k: int, start: int, count: int) -> np.ndarray:
        """``count`` rows of dataset k, from place ``start`` of its endless passes on."""
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
    """Lines of a plan, or of what came of it, from the rows drawn of each dataset."""
    total = max(sum(drawn.values()), 1)
    return [Share(name, size, drawn.get(name, 0) / total, drawn.get(name, 0)) for name, size in sizes.items()]
