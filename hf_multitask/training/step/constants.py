"""What every task's best constant answer would lose on the training data: how much there is to be learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...data import Mixture, Stream
from ...data.encoding import label_column
from ...tasks import Task


def constant_losses(
    mixture: Mixture, tasks: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """By task, the loss of its best constant answer; streams are not read, and types that do not know it left out.

    Args:
        mixture: the training data.
        tasks: by name.
        tokenizer: that encoded them.
    """
    losses: dict[str, float] = {}
    for dataset in mixture.datasets:
        for name in [] if isinstance(dataset, Stream) else [name for name in dataset.tasks if name in tasks]:
            rows: Any = dataset.rows  # type: ignore[union-attr]
            labels = [label for label in rows[label_column(name)] if label is not None]
            loss = tasks[name].constant_loss(labels, rows, tokenizer)
            if loss is not None:
                losses[name] = loss
    return losses
