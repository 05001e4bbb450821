"""Which of several texts is the right one. Legend as in ``heads``; G choices of an item."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from transformers import AutoModelForMultipleChoice, PreTrainedConfig

from .heads import Head, PooledLinear, at_least_float32
from .native import Over, States


class MultipleChoiceHead(Head):
    """A score for each choice of a question. An item is a question; its loss is the cross-entropy over its choices."""

    auto_class = AutoModelForMultipleChoice
    reads_several: ClassVar[bool] = True
    absent: ClassVar[float] = float("-inf")

    @classmethod
    def outputs(cls, task: dict[str, Any]) -> int:  # noqa: ARG003
        """One score a choice."""
        return 1

    def build(self, task: dict[str, Any], config: PreTrainedConfig, pooling: str) -> None:
        """Make the family's stock layers, or a linear layer on the pooled states."""
        self.pooled = None if pooling == "native" else PooledLinear(config, num_labels=1, pooling=pooling)
        if self.pooled is None:
            super().build(task, config, pooling)

    def forward(
        self,
        states: States,
        input_ids: torch.Tensor | None,  # noqa: ARG002
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """States of single choices (M, L, D) to scores (M,)."""
        if self.pooled is not None:
            return self.pooled(states.last_hidden_state, attention_mask).squeeze(-1)
        # The stock class takes (N, G, L) and flattens it; here every choice stands alone.
        ids_ML = torch.zeros_like(states.last_hidden_state[..., 0], dtype=torch.long)  # type: ignore[index]
        native = Over(self.native, self.native.base_model_prefix, states)
        return native.forward(input_ids=ids_ML.unsqueeze(1)).logits.squeeze(-1)

    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """1 per question."""
        return torch.ones_like(labels)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (N, G), minus infinity where a question has fewer choices, and labels (N,) to (N,)."""
        return F.cross_entropy(at_least_float32(logits), labels, reduction="none")
