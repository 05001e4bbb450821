"""What a run does with its data: from raw rows to the micro-batches of a step, and the passes over each dataset."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import cast

from torch.utils.data import DataLoader

from ..data import (
    Encoded,
    Mixture,
    MixtureCollator,
    SamplingRates,
    StepLoader,
    StepSampler,
    Stream,
    build_rates,
    shares_of,
)
from ..data.forwards import COST_ACCELERATOR, COST_CPU, Forwards
from ..data.weights import check_weights
from ..data.workers import leave_sigterm_to_parent
from ..modeling.inputs import positions_of
from ..modeling.readers import TEXTS
from ..tasks import Task
from .cost import cost_of
from .distillation import Teachers
from .evaluation.rows import EvaluationRows
from .plain import Saved, State
from .preparation.class_weights import balance, describe_class_weights
from .preparation.processors import Processing
from .preparation.requirements import check_extras
from .preparation.sets import EvaluationData, split_sets
from .preparation.tasks import Datasets, check_split, draw_rows, encode_datasets
from .preparation.unlabeled import with_placeholders
from .ranks import check_alike
from .report.console import Reader, describe_shares
from .runtime import Runtime
from .step.rows import Batch

_USUAL_TEXT = 128  # tokens, where the texts of streams are not known


class Plan:
    """The rows of a run, and the order in which its steps read them.

    Args:
        runtime: where it runs.
        tasks: by name.
        given: the trainer's ``processing_class``, which encodes them.
        rates: of sampling; None for those of the arguments.

    Attributes:
        mixture: the training data; None where there are none.
        sampler: of the current training.
        left: by dataset that no unfinished task reads, the epoch from which it draws no rows.
        anchors: by stream, from where on it is read again; see :class:`hf_multitask.data.Stream`.
    """

    sampler: StepSampler | None = None

    def __init__(
        self,
        runtime: Runtime,
        tasks: Mapping[str, Task],
        given: Processing,
        rates: SamplingRates | None,
    ) -> None:
        self.runtime, self.tasks, self.given, self._rates = runtime, dict(tasks), given, rates
        self.mixture: Mixture | None = None
        self.left: dict[str, int] = {}
        self.anchors: dict[str, State] = {}
        self._cost_source: str | None = None  # where the cost of a forward pass comes from; None before training

    @property
    def rates(self) -> SamplingRates:
        """The sampling rates of the mixture."""
        args = self.runtime.args
        return self._rates or build_rates(args.sampling, args.sampling_kwargs)  # type: ignore[arg-type]

    @property
    def seed(self) -> int:
        """Of the order of the rows."""
        args = self.runtime.args
        return args.seed if args.data_seed is None else args.data_seed

    # Raw rows

    def read(self, data: Datasets, teachers: Teachers | None = None) -> Mixture:
        """Tokenize the training data, and compute the class weights that depend on them.

        Args:
            data: raw rows by dataset name.
            teachers: that add soft labels.

        Raises:
            ValueError: a row is not usable, a task has no row with a label or a weight above 0, or a teacher does not
                fit.
        """
        capped = self._capped(data, self.runtime.args.max_train_samples)
        encoded = self._encode(capped, "train", training=True)
        for rows in encoded:
            if isinstance(rows, Stream):
                continue
            for task in rows.tasks:
                if not len(rows.labelled(task)):
                    raise ValueError(
                        f"Task '{task}' has no training data: no row of '{rows.name}' has its label. Add some."
                    )
                check_weights(self.tasks[task], rows.labelled(task))
        balance(self.tasks, encoded, self.runtime.model)
        if teachers is not None:
            with self.runtime.args.main_process_first(desc="asking the teachers"):
                encoded = teachers.teach(encoded, capped)
        self.mixture = Mixture(encoded)
        return self.mixture

    def evaluation_rows(
        self, data: EvaluationData, split: str, own_metrics: Collection[str], *, predicts: bool = False
    ) -> EvaluationRows:
        """Rows of every task that has data in a split, checked and tokenized, and those of further evaluation sets.

        Args:
            data: raw rows by dataset name, or evaluation sets of these by name.
            split: what messages call it.
            own_metrics: tasks whose metrics the user computes.
            predicts: whether tasks may have no labels at all.

        Raises:
            ValueError: there are none, a row is not usable, or processes have different data.
        """
        data, sets = (cast(Datasets, data), {}) if predicts else split_sets(data, self.tasks)
        if self.runtime.processes > 1 and sets:
            check_alike({"evaluation sets": {name: sorted(of_set) for name, of_set in sets.items()}})
        data, unlabeled = with_placeholders(self.tasks, data) if predicts else (data, set[str]())
        check_split(self.tasks, data, split, sliced=not predicts)
        if not data:
            raise ValueError(f"The {split} data have no dataset. Add one that a task reads.")
        check_extras(self.tasks, data, {*own_metrics, *unlabeled})
        capped = self.measured(data)
        rows = EvaluationRows(cast("list[Encoded]", self._encode(capped, split, training=False)))
        rows.check(split, self.runtime.processes)
        rows.unlabeled = unlabeled
        rows.sets = {name: self.evaluation_rows(own, f"{split} ({name})", own_metrics) for name, own in sets.items()}
        return rows

    def measured(self, data: Datasets) -> Datasets:
        """The rows of some evaluation data that are measured, where ``max_eval_samples`` caps them."""
        return self._capped(data, self.runtime.args.max_eval_samples)

    def _encode(self, data: Datasets, split: str, *, training: bool) -> list[Encoded | Stream]:
        with self.runtime.args.main_process_first(desc="tokenizing"):
            return encode_datasets(
                self.tasks,
                data,
                split,
                training=training,
                tokenizer=self.given,
                config=self.runtime.model.config.backbone_config,
                workers=self.runtime.args.dataloader_num_workers,
            )

    def _capped(self, data: Datasets, most: Mapping[str, int] | str | int | None) -> Datasets:
        """The datasets with their rows drawn down to the caps, the same rows whatever the other datasets are."""
        caps: Mapping[str, int | None] = (
            most if isinstance(most, Mapping) else dict.fromkeys(data, cast("int | None", most))
        )
        return {name: draw_rows(rows, caps.get(name), self.seed) for name, rows in data.items()}

    # Steps

    @property
    def data(self) -> Mixture:
        """The training data.

        Raises:
            ValueError: there are none.
        """
        if self.mixture is None:
            raise ValueError("There is nothing to train on. Give train_dataset.")
        return self.mixture

    @property
    def training_tasks(self) -> list[str]:
        """Tasks with training data, which all have but frozen ones."""
        read = {task for readers in self.data.tasks.values() for task in readers}
        return [name for name in self.tasks if name in read]

    def new_sampler(self) -> StepSampler:
        """A sampler of the steps, from their beginning."""
        args, mixture, rows = self.runtime.args, self.data, self.runtime.rows_per_step
        known = all(mixture.sizes.values())
        epochs = math.ceil(args.num_train_epochs * math.ceil(len(mixture) / rows)) if known else None
        return StepSampler(
            mixture.sizes,
            self.rates,
            streams=mixture.streams,
            lengths=mixture.costs(self.forwards),
            rows_per_step=rows,
            total_steps=args.max_steps if args.max_steps > 0 else epochs,
            accumulation=args.gradient_accumulation_steps,
            world_size=self.runtime.processes,
            rank=self.runtime.rank,
            seed=self.seed,
        )

    def steps(self) -> int:
        """Optimizer steps that the arguments set."""
        args = self.runtime.args
        if args.max_steps > 0:
            return args.max_steps
        return math.ceil(self.new_sampler().steps_per_epoch * args.num_train_epochs)

    def loader(self, collator: MixtureCollator) -> DataLoader:
        """Micro-batches of this process, step by step."""
        args = self.runtime.args
        self.sampler = self.new_sampler()
        self.follow()
        return StepLoader(
            self.data,
            self.sampler,
            collator,
            self.forwards,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers and args.dataloader_num_workers > 0,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context if args.dataloader_num_workers else None,
            worker_init_fn=leave_sigterm_to_parent,
        )

    def note_anchors(self, batches: Sequence[Batch]) -> None:
        """Note how far the streams are read once a step is over."""
        for batch in batches:
            for name, anchor in batch["anchors"].items():
                self.data.streams[name].anchor = self.anchors[name] = anchor

    def leave(self, finished: Collection[str], epoch: int) -> None:
        """Let datasets that only finished tasks read leave the mixture from an epoch on."""
        for name, readers in self.data.tasks.items():
            if name not in self.left and set(readers) <= set(finished):
                self.left[name] = epoch
        self.follow()

    def follow(self) -> None:
        """Pass the datasets that have left to the sampler, and their positions to the streams."""
        for name, epoch in self.left.items():
            if self.sampler is not None:
                self.sampler.leave(name, epoch)
        for name, stream in ({} if self.mixture is None else self.mixture.streams).items():
            stream.begin_at(self.anchors.get(name))

    # Forward passes

    @cached_property
    def forwards(self) -> Forwards:
        """How a micro-batch is divided into forward passes."""
        return self._usual_forwards()

    @property
    def _is_packed(self) -> bool:
        """Whether the backbone reads no padding; compiled code does."""
        return self.runtime.model.packs and not self.runtime.compiles

    @property
    def _is_undivided(self) -> bool:
        """Whether a micro-batch is one pass: without padding, or as an engine gathers its shards at every pass."""
        packed = self._is_packed and self.runtime.args.forward_cost_tokens is None
        return packed or self.runtime.engine is not None

    def _usual_forwards(self) -> Forwards:
        runtime = self.runtime
        cost = COST_ACCELERATOR if runtime.is_accelerator else COST_CPU
        return Forwards(
            None if self._is_undivided else cost,
            rounded=(runtime.is_accelerator or runtime.compiles) and not self._is_packed,
            longest=positions_of(runtime.model.config.backbone_config),
        )

    def settle(self) -> None:
        """Decide what an additional forward pass costs, when a training begins; on accelerators it is measured."""
        if self._cost_source is None and not self._is_undivided:
            self.forwards.cost, self._cost_source = cost_of(self.runtime, self.forwards.length(self._longest_text()))

    def _longest_text(self) -> int:
        """The length of the longest text that the backbone reads at once, as far as it is known."""
        texts = [rows for rows in self.data.datasets if isinstance(rows, Encoded) and rows.reader.modality == TEXTS]
        longest = [min(int(self.data.lengths()[rows.name].max()), rows.limit or math.inf) for rows in texts]
        return int(max(longest, default=_USUAL_TEXT))

    # In words

    def describe_forwards(self) -> str:
        """How micro-batches are divided into forward passes, in a sentence."""
        if self.forwards.cost is None:
            return "Forward passes: one for a micro-batch, without padding." if self._is_packed else ""
        shapes = "; texts are padded to few lengths" if self.forwards.rounded else ""
        cost = f"an additional one costs as much as {self.forwards.cost:,} tokens ({self._cost_source or 'assumed'})"
        return f"Forward passes: {cost}{shapes}."

    def describe(self, steps: int) -> str:
        """What a run of so many optimizer steps does with the data: rows, labels, classes, share, passes by task."""
        sampler = self.new_sampler()
        title = f"Plan: {steps:,} steps of {sampler.rows_per_step} rows"
        shares = describe_shares(title, sampler.plan(steps), self._readers())
        return shares + describe_class_weights(self.tasks, self.training_tasks)

    def describe_seen(self, seen: Mapping[str, int]) -> str:
        """What the run did with the data, counted in its batches, in the form of the plan.

        Args:
            seen: by dataset, rows.
        """
        title = f"Seen: {self.runtime.step:,} steps"
        return describe_shares(title, shares_of(self.data.sizes, seen), self._readers())

    def _readers(self) -> dict[str, list[Reader]]:
        """The tasks of every dataset, as the plan shows them."""
        return {
            rows.name: [
                Reader(name, None if isinstance(rows, Stream) else rows.labelled_rows(name), _classes(self.tasks[name]))
                for name in rows.tasks
            ]
            for rows in self.data.datasets
        }

    def row_order(self) -> dict[str, object]:
        """What the order of the rows depends on, in words that an error can say."""
        sampler, mixture = self.new_sampler(), self.data
        return {
            "rows of the datasets": mixture.sizes,
            "contents of the datasets": mixture.digests,
            "rows of a step": sampler.rows_per_step,
            "sampling": [type(self.rates).__name__, self.runtime.args.sampling_kwargs],
            "seed of the data": self.seed,
        }

    # Checkpoints

    def state_dict(self) -> State:
        """The keys ``left``, ``anchors`` and ``forwards`` of the state of a checkpoint."""
        forwards = {
            "cost": self.forwards.cost,
            "source": self._cost_source,
            "rounded": self.forwards.rounded,
            "forward_cost_tokens": self.runtime.args.forward_cost_tokens,
        }
        return {"left": self.left, "anchors": self.anchors, "forwards": forwards}

    def load_state_dict(self, state: Saved) -> None:
        """Continue from a checkpoint, or begin if there is none.

        The cost of a forward pass is that of the checkpoint, unless the argument for it has changed.
        """
        self.left, self.anchors = dict(state["left"]), dict(state["anchors"])
        self._cost_source = None
        if state["folder"] is None:  # the model may not be there yet: a search builds one for every trial
            self.__dict__.pop("forwards", None)
            self.follow()
            return
        usual, saved = self._usual_forwards(), state["forwards"]
        self.forwards.cost = usual.cost
        self.forwards.rounded = saved.get("rounded", False)  # in earlier versions, none were
        same = saved.get("source") and not self._is_undivided
        if same and saved["forward_cost_tokens"] == self.runtime.args.forward_cost_tokens:
            self.forwards.cost, self._cost_source = saved["cost"], saved["source"]
        if self.sampler is not None:
            self.sampler.sort_by(self.data.costs(self.forwards))
        self.follow()


def _classes(task: Task) -> int | None:
    names = getattr(task, "label_names", None)
    return len(names) if names and getattr(task, "problem_type", None) != "regression" else None
