"""The loader of a training run: micro-batches of the step sampler, each in one or more forwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from .forwards import split_by_length
from .mixture import Feature, Mixture, MixtureCollator
from .sampler import StepSampler

# What one more forward costs, in tokens. On a CPU that is mostly the backward's adding to gradients that are there: of
# MiniLM's 23 million parameters, as long as 53 to 60 tokens take. An accelerator is hardly busy with so few.
OVERHEAD_CPU, OVERHEAD_ACCELERATOR = 64, 2048
_NEVER = 2**40


class StepCollator:
    """A micro-batch as one or more batches of rows of similar length, ``forwards``, with ``rows`` by dataset.

    Rows of different modalities never share one.

    ``row_numbers`` has, for each of the forwards, the rows of its tasks, as their datasets number them; ``anchors``
    says by stream from where on rows can be read that come after this micro-batch.

    Args:
        collator: makes a batch of features.
        overhead: see :func:`split_by_length`.
    """

    def __init__(self, collator: MixtureCollator, overhead: int) -> None:
        self.collator = collator
        self.overhead = overhead

    def __call__(self, features: Sequence[Feature]) -> dict[str, Any]:
        """Features to ``{"forwards": [batch, ...], "row_numbers": [{task: numbers}, ...], "rows": {dataset: rows},
        "anchors": {stream: anchor}}``.
        """
        groups = [
            [own[place] for place in group]
            for own in self._by_modality(features)
            for group in split_by_length([self.collator.length(features[row]["inputs"]) for row in own], self.overhead)
        ]
        return {
            "forwards": [self.collator([features[row] for row in group]) for group in groups],
            "row_numbers": [self._row_numbers([features[row] for row in group]) for group in groups],
            "rows": Counter(feature["dataset"] for feature in features if feature["dataset"] is not None),
            "anchors": {feature["dataset"]: feature["anchor"] for feature in features if "anchor" in feature},
        }

    def _by_modality(self, features: Sequence[Feature]) -> list[list[int]]:
        """The rows of each modality."""
        found: dict[str, list[int]] = {}
        for row, feature in enumerate(features):
            found.setdefault(self.collator.reader(feature["inputs"]).modality, []).append(row)
        return list(found.values())

    @staticmethod
    def _row_numbers(features: Sequence[Feature]) -> dict[str, list[int]]:
        numbers: dict[str, list[int]] = {}
        for feature in features:
            for task in feature["labels"]:
                numbers.setdefault(task, []).append(feature["row"])
        return numbers


class StepLoader(DataLoader):
    """Loads what the step sampler draws. The sampler shards by itself, so accelerate is not asked to.

    Seeds for workers come from a generator of its own: workers that persist are seeded once in a run, and once more
    where it goes on from a checkpoint, which must not move the random state of the training.

    Args:
        mixture: the rows.
        sampler: which of them, in micro-batches of this rank.
        collator: makes a batch of features.
        device: type of the device that runs the forwards.
        in_parts: whether a micro-batch may run as several forwards, on one rank more than on another.
        kwargs: of ``torch.utils.data.DataLoader``.
    """

    def __init__(
        self,
        mixture: Mixture,
        sampler: StepSampler,
        collator: MixtureCollator,
        *,
        device: str,
        in_parts: bool = True,
        **kwargs: Any,
    ) -> None:
        overhead = (OVERHEAD_CPU if device == "cpu" else OVERHEAD_ACCELERATOR) if in_parts else _NEVER
        super().__init__(
            mixture,
            batch_sampler=sampler,
            collate_fn=StepCollator(collator, overhead),
            generator=torch.Generator().manual_seed(sampler.seed),
            **kwargs,
        )
        self.step_sampler = sampler
        for stream in mixture.streams.values():
            stream.keep = sampler.rows_per_step

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that iteration yields."""
        self.step_sampler.set_epoch(epoch)
