"""The part of the trainer that mixes: from raw rows to the micro-batches of a step, and a count of what it has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer

from ..data import Mixture, MixtureCollator, SamplingRates, StepLoader, StepSampler, Stream, build_rates, shares_of
from ..data.workers import leave_sigterm_to_parent
from ..modeling import MultiTaskModel
from ..tasks import Task
from .arguments import MultiTaskTrainingArguments
from .preparation import Datasets, draw_rows, encode_datasets
from .report.console import Reader, describe_shares
from .state.progress import Progress


class MixingTrainer(Trainer):
    """The Trainer, on the rows of several datasets."""

    args: MultiTaskTrainingArguments
    model: MultiTaskModel
    processing_class: PreTrainedTokenizerBase
    tasks: dict[str, Task]
    train_dataset: Mixture | None
    data_collator: MixtureCollator
    own_rates: SamplingRates | None
    progress: Progress
    _steps: StepSampler | None
    _seen_rows: torch.Tensor
    _sharded: bool

    @property
    def rates(self) -> SamplingRates:
        """The sampling rates of the mixture."""
        return self.own_rates or build_rates(self.args.sampling, self.args.sampling_kwargs)  # type: ignore[arg-type]

    def _encode(self, data: Datasets, split: str, *, training: bool) -> list[Any]:
        with self.args.main_process_first(desc="tokenising"):
            return encode_datasets(
                self.tasks,
                data,
                split,
                training=training,
                tokenizer=self.processing_class,
                config=self.model.config.backbone_config,
            )

    def _capped(self, data: Datasets, most: Any) -> Datasets:
        """The datasets with their rows drawn down to the caps, the same rows whatever the other datasets are."""
        caps = most if isinstance(most, Mapping) else dict.fromkeys(data, most)
        return {name: draw_rows(rows, caps.get(name), self._data_seed) for name, rows in data.items()}

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _train_mixture(self, data: Datasets) -> Mixture:
        encoded = self._encode(self._capped(data, self.args.max_train_samples), "train", training=True)
        for rows in encoded:
            for task in () if isinstance(rows, Stream) else rows.tasks:
                if not len(rows.labelled(task)):
                    raise ValueError(
                        f"Task '{task}' has no training data: no row of '{rows.name}' has its label. Add some."
                    )
        return Mixture(encoded)

    def _mixture(self) -> Mixture:
        if self.train_dataset is None:
            raise ValueError("There is nothing to train on. Give train_dataset.")
        return self.train_dataset

    def _step_sampler(self) -> StepSampler:
        mixture = self._mixture()
        batch, accumulation, world = self._train_batch_size, self.args.gradient_accumulation_steps, self.args.world_size
        rows = batch * accumulation * world
        known = all(mixture.sizes.values())
        epochs = math.ceil(self.args.num_train_epochs * math.ceil(len(mixture) / rows)) if known else None
        return StepSampler(
            mixture.sizes,
            self.rates,
            streams=mixture.streams,
            lengths=mixture.lengths(),
            rows_per_step=rows,
            total_steps=self.args.max_steps if self.args.max_steps > 0 else epochs,
            accumulation=accumulation,
            world_size=world,
            rank=self.args.process_index,
            seed=self._data_seed,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of this rank, step by step."""
        self._steps = self._step_sampler()
        self._follow_progress()
        return StepLoader(
            self._mixture(),
            self._steps,
            self.data_collator,
            device=self.args.device.type,
            in_parts=not self._sharded,  # which gathers weights at every forward
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=leave_sigterm_to_parent,
        )

    def describe_plan(self, steps: int) -> str:
        """What a run of so many optimizer steps does with the data: rows, labels, classes, share, passes by task."""
        sampler = self._step_sampler()
        title = f"Plan: {steps:,} steps of {sampler.rows_per_step} rows"
        return describe_shares(title, sampler.plan(steps), self._readers())

    def describe_seen(self) -> str:
        """What the run did with the data, counted in its batches, in the form of the plan."""
        mixture = self._mixture()
        title = f"Seen: {self.state.global_step:,} steps"
        return describe_shares(title, shares_of(mixture.sizes, self._count_seen()), self._readers())

    def _readers(self) -> dict[str, list[Reader]]:
        """The tasks of every dataset, as the plan shows them."""
        return {
            rows.name: [
                Reader(name, None if isinstance(rows, Stream) else rows.labelled_rows(name), _classes(self.tasks[name]))
                for name in rows.tasks
            ]
            for rows in self._mixture().datasets
        }

    def _row_order(self) -> dict[str, Any]:
        """What the order of the rows depends on, in words that an error can say."""
        sampler, mixture = self._step_sampler(), self._mixture()
        return {
            "rows of the datasets": mixture.sizes,
            "contents of the datasets": mixture.digests,
            "rows of a step": sampler.rows_per_step,
            "sampling": [type(self.rates).__name__, self.args.sampling_kwargs],
            "seed of the data": self._data_seed,
        }

    @property
    def _training_tasks(self) -> list[str]:
        """Tasks with training data, which all are but frozen ones."""
        read = {task for readers in self._mixture().tasks.values() for task in readers}
        return [name for name in self.tasks if name in read]

    def _follow_progress(self) -> None:
        for name, epoch in self.progress.left.items():
            if self._steps is not None:
                self._steps.leave(name, epoch)
        for name, stream in ({} if self.train_dataset is None else self.train_dataset.streams).items():
            stream.begin_at(self.progress.anchors.get(name))

    def _count_seen(self) -> dict[str, int]:
        """Rows of every dataset that training has seen, brought up to date."""
        for name, rows in zip(self._mixture().sizes, self._seen_rows.tolist(), strict=True):
            self.progress.seen[name] = self.progress.seen.get(name, 0) + rows
        self._seen_rows.zero_()
        return self.progress.seen


def _classes(task: Task) -> int | None:
    names = getattr(task, "label_names", None)
    return len(names) if names and getattr(task, "problem_type", None) != "regression" else None
