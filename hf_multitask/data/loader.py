"""The data loader of a training run: micro-batches of the step sampler, each in one or more forward passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from torch.utils.data import DataLoader

from ..modeling.readers import Row
from .batch import MicroBatch, ModelInputs
from .forwards import split_by_length
from .mixture import Feature, Mixture, MixtureCollator
from .sampler import StepSampler

# Cost of an additional forward pass, in tokens. On a CPU it is mostly the accumulation of gradients in the backward
# pass: for the 23 million parameters of MiniLM, as long as 53 to 60 tokens. So few tokens do not fill an accelerator.
OVERHEAD_CPU, OVERHEAD_ACCELERATOR = 64, 2048
_NO_PADDING = 2**40  # where a forward pass saves no padding, as the backbone reads rows without any


class StepCollator:
    """Collates a micro-batch into one or more batches of rows of similar length.

    Rows of different modalities never share a batch.

    Args:
        collator: creates a batch from features.
        overhead: see :func:`split_by_length`; rows of a modality stay together if None.
    """

    def __init__(self, collator: MixtureCollator, overhead: int | None) -> None:
        self.collator = collator
        self.overhead = overhead

    def __call__(self, features: Sequence[Feature]) -> MicroBatch:
        """The micro-batch of some rows."""
        groups = [
            [own[place] for place in group]
            for own in self._by_modality(features)
            for group in self._split([features[row]["inputs"] for row in own])
        ]
        return {
            "forwards": [self._forward([features[row] for row in group]) for group in groups],
            "row_numbers": [self._row_numbers([features[row] for row in group]) for group in groups],
            # A plain dict, as pinning memory updates a copy of it with itself, which doubles the counts of a Counter.
            "rows": dict(Counter(feature["dataset"] for feature in features if feature["dataset"] is not None)),
            "anchors": {feature["dataset"]: feature["anchor"] for feature in features if "anchor" in feature},
        }

    def _forward(self, features: Sequence[Feature]) -> ModelInputs:
        return cast(ModelInputs, {**self.collator(features), **self.collator.mask_seeds(features)})

    def _split(self, inputs: Sequence[Row]) -> list[list[int]]:
        """The forward passes of rows of one modality."""
        if self.overhead is None:
            return [list(range(len(inputs)))]
        lengths = [self.collator.length(row) for row in inputs]
        return split_by_length(lengths, self.overhead, self.collator.most(inputs[0]))

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
    """Loads the rows that the step sampler draws. The sampler shards the data, so accelerate does not have to.

    Seeds for workers come from a separate generator: persistent workers are seeded once per run, and again after a
    resume, which must not change the random state of the training.

    Args:
        mixture: the rows.
        sampler: draws the rows of the micro-batches of this rank.
        collator: creates a batch from features.
        device: type of the device of the model.
        in_parts: whether a micro-batch may run as several forward passes, whose number may differ between ranks.
        padded: whether the backbone reads padding.
        kwargs: arguments of ``torch.utils.data.DataLoader``.
    """

    def __init__(
        self,
        mixture: Mixture,
        sampler: StepSampler,
        collator: MixtureCollator,
        *,
        device: str,
        in_parts: bool = True,
        padded: bool = True,
        **kwargs: object,
    ) -> None:
        cost = (OVERHEAD_CPU if device == "cpu" else OVERHEAD_ACCELERATOR) if padded else _NO_PADDING
        super().__init__(
            mixture,
            batch_sampler=sampler,
            collate_fn=StepCollator(collator, cost if in_parts else None),
            generator=torch.Generator().manual_seed(sampler.seed),
            **kwargs,  # type: ignore[arg-type]
        )
        self.step_sampler = sampler
        for stream in mixture.streams.values():
            stream.keep = sampler.rows_per_step

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.step_sampler.set_epoch(epoch)
