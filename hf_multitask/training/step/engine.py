"""The Trainer's hooks of an optimizer step: its denominators, its forwards, its loss, its logs."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from .guard import LeavingTrainer


class SteppingTrainer(LeavingTrainer):
    """The Trainer, whose step has the loss of a mixture."""

    _seen_rows: torch.Tensor

    def _begin_again(self) -> None:
        """Forget what a training that broke off did, and go by the progress alone."""
        self._seen_rows.zero_()
        self._drop_totals()
        self.balance = self._new_balance()
        if self.progress.balancing:
            self.balance.load_state_dict(self.progress.balancing, "of the start")

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> dict[str, torch.Tensor]:
        """Items of every task with rows in the whole step, over micro-batches and ranks."""
        heads: Any = self.model.heads
        tasks, datasets = list(self.tasks), list(self._mixture().sizes)
        items_K, rows_K, rows_D = [0] * len(tasks), [0] * len(tasks), [0] * len(datasets)
        task_number = {name: number for number, name in enumerate(tasks)}
        for batch in batch_samples:
            for name, rows in batch["rows"].items():
                rows_D[datasets.index(name)] += rows
            for name, anchor in batch["anchors"].items():
                self._mixture().streams[name].anchor = self.progress.anchors[name] = anchor
            for forward in batch["forwards"]:
                for name in self.progress.finished:
                    forward["labels"].pop(name, None)
                    forward["task_rows"].pop(name, None)
                for name, labels in forward["labels"].items():
                    items_K[task_number[name]] += int(heads[name].items(labels).sum())
                    rows_K[task_number[name]] += len(labels)
        own = torch.tensor([*items_K, *rows_K, *rows_D])
        counts = self.accelerator.reduce(own.to(device), "sum")
        items, rows, seen = counts.split([len(tasks), len(tasks), len(datasets)])
        known = own if self.accelerator.num_processes == 1 else counts  # a device is not waited for without need
        in_step = known.tolist()
        self._items = dict(zip(tasks, in_step, strict=False))
        self._total_rows += rows
        self._new_rows += rows
        self._seen_rows += seen
        self._open_step(batch_samples, [name for name in tasks if self._items[name]])
        return {name: items[k] for k, name in enumerate(tasks) if in_step[len(tasks) + k]}

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, list[dict[str, Any]]],
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Forward and backward of each part of a micro-batch; the loss of the step with its last one, 0 before."""
        if not self._step_begun:
            self._begin_step(num_items_in_batch)
        self._run(model, inputs["forwards"], num_items_in_batch)
        if not self.accelerator.sync_gradients:
            return torch.zeros_like(self._step_loss)
        return self._end_step(model, num_items_in_batch)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimated operations of all parts of a micro-batch."""
        name = self.model.main_input_name
        tokens = sum(part[name].numel() for part in inputs["forwards"] if name in part)
        return tokens * self._operations_of_a_token

    @cached_property
    def _operations_of_a_token(self) -> int:
        """The Trainer's estimate, which counts the parameters of all heads anew whenever it is asked."""
        return super().floating_point_ops({self.model.main_input_name: torch.zeros(1, 1)})

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Count the tokens of a micro-batch at once: ranks meet to add them up, and may have other numbers of parts."""
        if self.args.include_num_input_tokens_seen != "no":
            parts, names = inputs["forwards"], (self.model.main_input_name, "attention_mask")
            whole = {name: torch.cat([part[name].flatten() for part in parts]) for name in names if name in parts[0]}
            super()._track_num_input_tokens(whole)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The weighted sum of the task losses of a micro-batch, each divided by the items of the whole step.

        Distributed training averages gradients over ranks, so the loss is multiplied by their number.
        """
        with self._matrix_watched():
            outputs = model(**inputs, num_items_in_batch=num_items_in_batch, all_heads=self._waits_for_heads)
        weights = self._weights_of(outputs.losses)
        terms = [weights[name] * loss for name, loss in outputs.losses.items() if name in weights]
        loss = sum(terms, outputs.loss * 0)  # the model's own loss reaches parameters that no term may reach
        self._take_in(outputs.losses, inputs)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    @property
    def _waits_for_heads(self) -> bool:
        """Whether the processes wait for the gradients of heads that one of them has no row for."""
        searched = self.args.ddp_find_unused_parameters and not self._sharded
        return self.accelerator.num_processes > 1 and not searched

    @property
    def _sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _drop_totals(self) -> None:
        """Start counting anew what the next log reports."""
        self._total_rows = torch.zeros(len(self.tasks), dtype=torch.long, device=self.args.device)
        self._new_rows = self._total_rows.clone()
        self._drop_logged()

    def _count_rows(self) -> dict[str, int]:
        """Rows of every task that training has seen, brought up to date."""
        for name, rows in zip(self.tasks, self._new_rows.tolist(), strict=True):
            self.progress.rows[name] = self.progress.rows.get(name, 0) + rows
        self._new_rows.zero_()
        return self.progress.rows

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what came of each task since the last log.

        ``<task>_loss``, its mean loss, and ``<task>_share`` of the rows; ``<task>_rows``, all that training has seen;
        with a balancer ``<task>_weight``, its mean weight; ``<task>_left_out``, steps that had to do without it because
        its loss or gradient was NaN or infinite, if any.
        """
        if "loss" in logs:
            self._log_tasks(logs)
            self._drop_totals()
        super().log(logs, start_time)

    def _log_tasks(self, logs: dict[str, float]) -> None:
        rows, seen = self._total_rows.tolist(), self._count_rows()
        for number, name in enumerate(self.tasks):
            loss, weight, steps = self._logged[name]
            if steps:
                logs[f"{name}_loss"] = loss / steps
            logs[f"{name}_share"] = rows[number] / max(sum(rows), 1)
            logs[f"{name}_rows"] = seen[name]
            if steps and self.balance.balancer is not None:
                logs[f"{name}_weight"] = weight / steps
            if name in self._left_out:
                logs[f"{name}_left_out"] = self._left_out[name]
