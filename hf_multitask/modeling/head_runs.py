"""Running the heads of a batch, each over its own rows of the shared states."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch

from .adapter_rows import Block
from .aliases import Open, Settings, Values
from .alike import Together, groups
from .branches import heads_of, layers_of
from .forks import as_task, fork
from .generation import check_generate_kwargs
from .heads import Head
from .keywords import check_keywords
from .language import LanguageHead
from .layers import all_states, drops_layers, number_of_layers, pooled, recorded
from .losses import divisor
from .native import WRITING, decoder_states, reading_part
from .packing import Packed, PackedFork, can_pack, why_not_packed
from .padded_norm import ignoring_padding
from .parts import in_parts, part_of, rows_of_a_pass
from .precision import fitted, in_dtype
from .routing import States, rows_of, spread, states_of, with_layers
from .shared import SharedModel
from .spec_augment import masked_spectrogram, masking
from .subsampler import embedded
from .trial import packing_problem
from .varlen import VARLEN

# What forward reads by itself, beside the inputs of the backbone.
_OWN = ("tasks", "task_rows", "labels", "row_weights", "num_items_in_batch", "all_heads", "return_dict")
_STATES = {"output_hidden_states": "hidden_states", "output_attentions": "attentions"}


# The shared states of a batch, its tokens and its mask.
Inputs = tuple[States, torch.Tensor | None, torch.Tensor | None]
TaskRows = Mapping[str, torch.Tensor] | None
Labels = Mapping[str, torch.Tensor] | None


class HeadRuns(SharedModel):
    """The part of :class:`MultiTaskModel` that runs heads."""

    _head: Callable[[str], Head]
    # Whether a batch with texts of many windows is read a few rows at a time; not where processes, or hooks on layers,
    # count passes.
    reads_in_parts = True
    _backbone_inputs: list[str]

    def _pass_inputs(self, inputs: Settings, task_rows: Mapping[str, torch.Tensor] | None, runs: list[str]) -> Values:
        """Further inputs of the backbone, with those that the configuration sets, each of which it reads."""
        own = [] if self.subsampler is None else [self.subsampler.input_name]
        for name in inputs:
            if name not in self._backbone_inputs and name not in own:
                check_keywords("model(...)", inputs, (*self._backbone_inputs, *own, *_OWN))
        asked = {name: True for name in _STATES if inputs.get(name) is None and getattr(self.config, name, False)}
        asked = {**inputs, **asked}
        if self._shows_states(asked) and len({self.routing.branches.get(name) for name in runs}) > 1:
            raise ValueError(
                "The states of the backbone differ by task, since tasks have branches. Request hidden_states and "
                "attentions with tasks of one branch in `tasks`."
            )
        if self._shows_states(asked) and self.routing.tasks:
            own = [name for name in runs if name in self.routing.tasks]
            if task_rows is not None or (own and len(runs) > 1):
                raise ValueError(
                    "The states of the backbone differ by task, since tasks have adapters of their own or read some "
                    "rows only. Request hidden_states and attentions with one task in `tasks`, and no `task_rows`."
                )
        return asked

    @staticmethod
    def _shows_states(inputs: Settings) -> bool:
        """Whether the output is to have the states of the backbone."""
        return any(inputs.get(name) for name in _STATES)

    def _states_shown(self, read: States | None, inputs: Settings) -> dict[str, tuple[torch.Tensor, ...]]:
        """The fields of the output for the states that are requested."""
        shown = {}
        for name, field in _STATES.items():
            if inputs.get(name):
                states = getattr(read, field, None)
                if not states or states[0] is None:
                    raise ValueError(
                        f"The backbone {self.config.backbone_config.model_type} gives no {field} with "
                        f"attn_implementation='{self.config._attn_implementation}'. Leave out `{name}`, or load the "
                        "model with attn_implementation='eager'."
                    )
                shown[field] = states
        return shown

    def _tasks_to_run(
        self, tasks: list[str] | None, task_rows: Mapping[str, torch.Tensor] | None, labels: Labels
    ) -> list[str]:
        if isinstance(labels, torch.Tensor):
            raise TypeError("`labels` should be a dict by task, such as {'ner': ...}. Found a tensor.")
        tasks = [tasks] if isinstance(tasks, str) else tasks
        for name in (*(labels or ()), *(tasks or ()), *(task_rows or ())):
            self.config.task(name)
        if tasks is None and task_rows is None:  # those that can read the input without a target
            names = self.config.task_names
            return [name for name in names if not self._head(name).writes or name in (labels or {})]
        wanted = tasks if tasks is not None else task_rows
        return [name for name in self.config.task_names if name in (wanted or ())]

    def splits_passes(self, task_rows: Mapping[str, torch.Tensor], rows: int) -> bool:
        """Whether a batch of so many rows is read in several passes to limit the memory for its longest text."""
        most = rows_of_a_pass(task_rows) if self.reads_in_parts and not torch.compiler.is_compiling() else None
        return most is not None and rows > most

    def _read(
        self, given: Values, task_rows: TaskRows, runs: list[str], *, everywhere: bool
    ) -> tuple[TaskRows, States, Inputs]:
        """One pass of the backbone: the tasks' rows in it, its output, and what heads read of it."""
        blocks: tuple[Block, ...] = self.routing.blocks
        if self.routing.tasks:
            given, task_rows, blocks = self.routing.split(given, task_rows, runs, everywhere=everywhere)
        parting = None
        if self.routing.branches:
            heads = heads_of(self.config.backbone_config)
            parting, task_rows = fork(self.routing, given, task_rows, runs, blocks, everywhere=everywhere, heads=heads)
        part = reading_part(self.backbone)
        given = in_dtype(given if self.subsampler is None else embedded(self.subsampler, given), self.backbone.dtype)
        seeds, mask, config = given.pop("mask_seeds", None), given.get("attention_mask"), self.config.backbone_config
        given = masked_spectrogram(config, given, seeds) if part.training else given
        packed, passed, forked = None, given, cast(Open, parting)
        if self.packs and not self.routing.tasks and can_pack(part, given):
            packed = Packed.of(torch.ones_like(given["input_ids"]) if mask is None else mask)
            forked = None if parting is None else PackedFork(parting, packed)
            passed = packed.inputs(part, config, given)
        passes = self.routing.of(blocks), self.routing.forked(forked)
        alone = ignoring_padding(part, config, mask), masking(part, seeds, mask)
        with passes[0], passes[1], alone[0], alone[1], self._layers_shown(passed, runs) as layers:
            read = part(**passed)
        if packed is not None:
            read, layers = packed.states(self.backbone.base_model, read, layers, forked)
        states, ids, mask = states_of(read, None), given.get("input_ids"), given["attention_mask"]
        if parting is not None:
            states, ids, mask = parting.above(states), parting.above(ids), parting.above(mask)
        if layers is not None:
            hidden = layers or [one for one in read.hidden_states or () if one is not None]
            last = cast(torch.Tensor, states.last_hidden_state)
            shown = all_states(hidden, last, number_of_layers(config))
            if parting is not None:
                shown = tuple(one if one.shape[0] == last.shape[0] else parting.above(one) for one in shown)
            states = with_layers(states, shown)
        return task_rows, read, (states, ids, mask)

    def set_attn_implementation(self, attn_implementation: str | Values, *args: Any, **kwargs: Any) -> None:
        """Set the attention of the backbone, as in ``PreTrainedModel``; ``varlen`` reads rows without padding.

        Raises:
            ValueError: it is ``varlen``, and the backbone cannot read rows without padding.
        """
        before = self.backbone.config._attn_implementation
        super().set_attn_implementation(attn_implementation, *args, **kwargs)
        try:
            self._settle_packing()
        except ValueError:
            super().set_attn_implementation(before)
            raise

    def _settle_packing(self) -> None:
        """Have the backbone read the rows of a batch as a stream if its attention is ``varlen``.

        Raises:
            ValueError: the backbone cannot read streams.
        """
        self.packs = False
        if self.backbone.config._attn_implementation != VARLEN:
            return
        problem = why_not_packed(self)
        if problem is None:
            problem = packing_problem(self, lambda given: self._read(given, None, [], everywhere=False)[2][0])
        if problem is not None:
            raise ValueError(
                f"The backbone family '{self.config.backbone_config.model_type}' cannot read rows without padding: "
                f"{problem}. Found `attn_implementation = 'varlen'`. Leave it out."
            )
        self.packs = True

    @contextmanager
    def _layers_shown(self, given: Values, runs: list[str]) -> Iterator[list[torch.Tensor | None] | None]:
        """Have a pass show the states of its layers if a head reads some; None if none does.

        Layers with branches, and layers that are left out at random, show them themselves.
        """
        part, config = reading_part(self.backbone), self.config.backbone_config
        heads = [cast(Head, self.heads[name]) for name in (self.heads if part.training or not runs else runs)]
        if all(head.layer is None for head in heads):
            yield None
        elif self.routing.branches or (part.training and drops_layers(config)):
            with recorded(list(layers_of(self.backbone))) as found:
                yield found
        else:
            given["output_hidden_states"] = True
            yield []

    def _read_in_parts(
        self, given: Values, task_rows: dict[str, torch.Tensor], labels: Labels
    ) -> tuple[dict[str, torch.Tensor], Any, Any]:
        """Outputs of all tasks from passes over a few rows each, and a pass over the first row for all other heads."""

        def run(
            part: Values, own_rows: dict[str, torch.Tensor], own_labels: dict[str, torch.Tensor]
        ) -> dict[str, torch.Tensor]:
            places, _, inputs = self._read(part, own_rows, list(own_rows), everywhere=False)
            own = places or {}
            return {name: self._row_outputs(name, inputs, rows, own_labels.get(name)) for name, rows in own.items()}

        read_labels = {name: own for name, own in (labels or {}).items() if self._head(name).language_model}
        whole = in_parts(run, given, task_rows, read_labels)
        if labels is None:
            return whole, None, None
        return whole, *self._read(part_of(given, 0, 1), None, [], everywhere=True)[1:]

    def _run_head(
        self,
        name: str,
        inputs: Inputs,
        rows: torch.Tensor | None,
        labels: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits of one task for its rows; ``inputs`` are the batch's shared states, tokens and mask."""
        flat = rows if rows is None or rows.dim() == 1 else rows[rows >= 0]
        return self._of_items(name, self._row_outputs(name, inputs, flat, labels), rows)

    def _run_alike(
        self,
        inputs: Inputs,
        task_rows: TaskRows,
        runs: list[str],
        labels: Labels,
        row_weights: TaskRows,
        num_items: Mapping[str, torch.Tensor] | None,
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
        """In training, logits of the tasks whose heads run together, and losses where these are computed together."""
        if not self.training or not labels or not task_rows or self.routing.tasks or torch.compiler.is_compiling():
            return {}
        found: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        heads = {name: self._head(name) for name in runs}
        for names in groups(heads, {name: task_rows[name] for name in runs if name in labels}):
            own = [heads[name] for name in names]
            group = Together(names, own, [len(task_rows[name]) for name in names])
            logits = group.logits(inputs[0], torch.cat([task_rows[name] for name in names]), *inputs[1:])
            losses: Sequence[torch.Tensor | None] = [None] * len(names)
            if group.fits(labels, row_weights, dims=logits.dim() - 1):
                items = (
                    [head.items(labels[name]).sum() for name, head in zip(names, own, strict=True)]
                    if num_items is None
                    else [num_items[name] for name in names]
                )
                losses = group.losses(logits, labels, torch.stack(items).to(logits.device)).unbind()
            for (name, own_logits), loss in zip(group.of_tasks(logits).items(), losses, strict=True):
                found[name] = own_logits, loss
        return found

    def _row_outputs(
        self,
        name: str,
        inputs: Inputs,
        rows: torch.Tensor | None,
        labels: torch.Tensor | None,
    ) -> torch.Tensor:
        """Outputs of one task for single rows, (M, ...); of all of the batch where None."""
        head = self._head(name)
        input_ids, attention_mask = rows_of(inputs[1], rows), rows_of(inputs[2], rows)
        with as_task(self.routing, name):
            states = self._states_at(head, inputs[0], rows)
            if head.reads_decoder:
                states = self._decoder_states(name, states, attention_mask, head.decoder_ids(input_ids, labels))
            if head.language_model:
                return cast(LanguageHead, head).read(self.backbone, states, labels)
        return head(fitted(states, head), input_ids, attention_mask)

    def _states_at(self, head: Head, shared: States, rows: torch.Tensor | None) -> States:
        """The states that a head reads, of single rows: those of its layer."""
        if head.layer is None:
            return states_of(shared, rows)
        early = None if head.needs_pooler else rows  # a pooler reads all rows, as the row split needs
        if isinstance(head.layer, int):
            hidden = rows_of(shared.hidden_states[head.layer], early)  # type: ignore[index]
        else:
            hidden = head.mix([rows_of(one, early) for one in shared.hidden_states])  # type: ignore[misc, union-attr]
        if not head.needs_pooler:
            return States(last_hidden_state=hidden)
        pooler_output = pooled(self.backbone.base_model, cast(torch.Tensor, hidden))
        return states_of(States(last_hidden_state=hidden, pooler_output=pooler_output), rows)

    def _of_items(self, name: str, outputs: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """Outputs of rows as the logits of items: of one row each, or of several where ``rows`` is (N, G)."""
        head = self._head(name)
        if head.language_model:
            return outputs
        if rows is not None and rows.dim() == 2:
            return head.of_windows(spread(outputs, rows, head.absent), rows >= 0)
        return outputs.unsqueeze(1) if head.reads_several else outputs

    def _decoder_states(
        self, name: str, states: States, attention_mask: torch.Tensor | None, ids: torch.Tensor | None
    ) -> States:
        if ids is None:
            raise ValueError(f"Task '{name}' reads the decoder. Give labels, or use generate(..., task='{name}').")
        return decoder_states(self.backbone, ids, states, attention_mask)

    def _zero(self, name: str, inputs: Inputs) -> torch.Tensor:
        """A zero that depends on every weight of a head."""
        head = self._head(name)
        first = torch.zeros(1, dtype=torch.long, device=self.device)
        labels = None
        if head.language_model:
            hidden = cast(torch.Tensor, inputs[0].last_hidden_state)
            labels = cast(LanguageHead, head).dummy_labels(hidden.new_zeros((1, hidden.shape[1]), dtype=torch.long))
        zero = (self._run_head(name, inputs, first, labels) * 0).sum()
        zero = zero + sum((weight * 0).sum() for weight in head.loss_parameters())
        if self.subsampler is None or not head.reads_audio:
            return zero
        return zero + sum((weight * 0).sum() for weight in self.subsampler.parameters())

    def _loss(
        self,
        name: str,
        logits: torch.Tensor,
        labels: torch.Tensor,
        row_weights: Mapping[str, torch.Tensor] | None,
        num_items: Mapping[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        head, weights = self._head(name), (row_weights or {}).get(name)
        items = head.weighted_items(labels, weights).sum() if num_items is None else num_items[name]
        return head.weighted_loss(logits, labels, weights).sum() / divisor(torch.as_tensor(items, device=logits.device))

    def _total(
        self, losses: Mapping[str, torch.Tensor], zeros: dict[str, torch.Tensor], read: Open, inputs: Inputs
    ) -> torch.Tensor:
        """The sum of the losses of a batch, and of zeros that depend on the heads that have no row in it.

        A batch of filler rows has no task: the graph still has to reach the backbone, or heads if it is frozen.
        """
        every = list(losses.values())
        loss = (
            (torch.stack(every).sum() if len(every) > 1 else every[0]) if losses else (read.last_hidden_state * 0).sum()
        )
        if self.training and torch.is_grad_enabled() and not loss.requires_grad:
            for name in self.config.task_names:
                if name not in losses and name not in zeros:
                    zeros[name] = self._zero(name, inputs)
        return sum(zeros.values(), loss)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        task: str,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Texts of a task that writes, by the backbone's own ``generate``.

        Args:
            input_ids: (N, L); None where the rows are no texts, whose inputs are in ``kwargs``.
            attention_mask: (N, L).
            task: a task of type ``text-generation``, or of one of the types that make a text from a text or a
                recording.
            kwargs: inputs of the backbone, and arguments of ``transformers.GenerationMixin.generate``, in place of the
                task's own.

        Returns:
            Tokens (N, T), as the backbone gives them.

        Raises:
            TypeError: ``generate`` does not take an argument.
            ValueError: the task writes no text.
        """
        head = self._head(task)
        if head.language_model not in WRITING:
            raise ValueError(
                f"Task '{task}' of type {self.config.task(task)['type']} writes no text. Name another task."
            )
        backbone: Any = self.backbone
        spoken = self.subsampler.input_name if self.subsampler is not None else None
        check_generate_kwargs("generate(...)", {key: kwargs[key] for key in kwargs if key != spoken}, backbone)
        own = {key: self.config.task(task).get(key) for key in ("num_beams", "max_new_tokens")}
        given = {key: value for key, value in own.items() if value is not None}
        read = {"input_ids": input_ids, "attention_mask": attention_mask}
        given = {**given, **{key: value for key, value in read.items() if value is not None}, **kwargs}
        with as_task(self.routing, task):
            if self.subsampler is not None:
                given = in_dtype(embedded(self.subsampler, given), self.backbone.dtype)
            return backbone.generate(**given)
