"""The data loader of a training run: micro-batches of the step sampler, each in one or more forward passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from torch.utils.data import DataLoader

from ..modeling.readers import TEXTS, Row
from .batch import MicroBatch, ModelInputs
from .forwards import Forwards
from .mixture import Feature, Mixture, MixtureCollator
from .sampler import StepSampler


class StepCollator:
    """Collates a micro-batch into one or more batches of rows of similar length.

    Rows of different modalities never share a batch.

    Args:
        collator: creates a batch from features.
        forwards: how many there are, and of which shapes.
    """

    def __init__(self, collator: MixtureCollator, forwards: Forwards) -> None:
        self.collator, self.forwards = collator, forwards

    def __call__(self, features: Sequence[Feature]) -> MicroBatch:
        """The micro-batch of some rows."""
        groups: list[list[int]] = []
        forwards: list[ModelInputs] = []
        for own in self._by_modality(features):
            inputs = [features[row]["inputs"] for row in own]
            lengths = [self._length(one) for one in inputs]
            for group in self.forwards.split(lengths, self.collator.most(inputs[0])):
                groups.append([own[place] for place in group])
                length = max(lengths[place] for place in group)
                forwards.append(self._forward([features[row] for row in groups[-1]], length))
        return {
            "forwards": forwards,
            "row_numbers": [self._row_numbers([features[row] for row in group]) for group in groups],
            # A plain dict, as pinning memory updates a copy of it with itself, which doubles the counts of a Counter.
            "rows": dict(Counter(feature["dataset"] for feature in features if feature["dataset"] is not None)),
            "anchors": {feature["dataset"]: feature["anchor"] for feature in features if "anchor" in feature},
        }

    def _length(self, inputs: Row) -> int:
        """The length of a pass in which a row is the longest."""
        length = self.collator.length(inputs)
        return self.forwards.length(length) if self.collator.reader(inputs).modality == TEXTS else length

    def _forward(self, features: Sequence[Feature], length: int) -> ModelInputs:
        batch = {**self.collator(features, length), **self.collator.mask_seeds(features)}
        return cast(ModelInputs, batch)

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
        forwards: of a micro-batch.
        kwargs: arguments of ``torch.utils.data.DataLoader``.
    """

    def __init__(
        self,
        mixture: Mixture,
        sampler: StepSampler,
        collator: MixtureCollator,
        forwards: Forwards,
        **kwargs: object,
    ) -> None:
        super().__init__(
            mixture,
            batch_sampler=sampler,
            collate_fn=StepCollator(collator, forwards),
            generator=torch.Generator().manual_seed(sampler.seed),
            **kwargs,  # type: ignore[arg-type]
        )
        self.step_sampler = sampler
        for stream in mixture.streams.values():
            stream.keep = sampler.rows_per_step

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.step_sampler.set_epoch(epoch)
