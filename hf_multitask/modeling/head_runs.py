"""The heads of a batch at work: each over its own rows of the states that all of them share."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from .adapter_rows import Routing
from .config import MultiTaskConfig
from .language import LanguageHead
from .native import shifted_right
from .precision import fitted
from .routing import States, rows_of, spread, states_of


class HeadRuns(PreTrainedModel):
    """The part of :class:`MultiTaskModel` that runs heads."""

    config: MultiTaskConfig
    backbone: Any
    routing: Routing | None
    _head: Any

    def _tasks_to_run(
        self, tasks: list[str] | None, task_rows: Mapping[str, torch.Tensor] | None, labels: Any
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

    def _run_head(
        self,
        name: str,
        inputs: tuple[States, torch.Tensor | None, torch.Tensor | None],
        rows: torch.Tensor | None,
        labels: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits of one task for its rows; ``inputs`` are the batch's shared states, tokens and mask."""
        head = self._head(name)
        items = rows if head.reads_several else None  # every row is an item of its own where there are no rows
        if items is not None:
            rows = items[items >= 0]
        states, input_ids, attention_mask = (
            states_of(inputs[0], rows),
            rows_of(inputs[1], rows),
            rows_of(inputs[2], rows),
        )
        with nullcontext() if self.routing is None else self.routing.whole(name):
            if head.reads_decoder:
                states = self._decoder_states(name, states, attention_mask, head.decoder_ids(input_ids, labels))
            if head.language_model:
                return cast(LanguageHead, head).read(self.backbone, states, labels)
        logits = head(fitted(states, head), input_ids, attention_mask)
        if items is not None:
            return spread(logits, items, head.absent)
        return logits.unsqueeze(1) if head.reads_several else logits

    def _decoder_states(
        self, name: str, states: States, attention_mask: torch.Tensor | None, ids: torch.Tensor | None
    ) -> States:
        if ids is None:
            raise ValueError(f"Task '{name}' reads the decoder. Give labels, or use generate(..., task='{name}').")
        output = self.backbone.get_decoder()(
            input_ids=shifted_right(ids, self.backbone.config),
            encoder_hidden_states=states.last_hidden_state,
            encoder_attention_mask=attention_mask,
            use_cache=False,
        )
        return States(last_hidden_state=output.last_hidden_state)

    def _zero(self, name: str, inputs: tuple[States, torch.Tensor | None, torch.Tensor | None]) -> torch.Tensor:
        """A zero that depends on every weight of a head."""
        head = self._head(name)
        first = torch.zeros((1, 1) if head.reads_several else 1, dtype=torch.long, device=self.device)
        labels = None
        if head.language_model:
            labels = cast(LanguageHead, head).dummy_labels(cast(torch.Tensor, inputs[1])[:1])
        return (self._run_head(name, inputs, first, labels) * 0).sum()

    def _loss(
        self,
        name: str,
        logits: torch.Tensor,
        labels: torch.Tensor,
        num_items: Mapping[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        head = self._head(name)
        items = head.items(labels).sum() if num_items is None else num_items[name]
        return head.loss(logits, labels).sum() / torch.as_tensor(items, device=logits.device).clamp(min=1)
