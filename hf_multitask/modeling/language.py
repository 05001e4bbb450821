"""Heads that are a native language model's own: what they read of it, and their loss.

Legend as in ``heads``; T target tokens, V words of the vocabulary, M labelled tokens of all rows of a task.
"""

from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

from .heads import IGNORE, Head, at_least_float32
from .native import States, check_language_model, language_logits


class LanguageHead(Head):
    """A head without layers of its own: the backbone is a native language model, and this reads its last layers.

    An item is a labelled token; its loss is the cross-entropy. Logits are computed at labelled tokens only.
    """

    language_model: ClassVar[str]

    @classmethod
    def outputs(cls, task: dict[str, Any]) -> int:  # noqa: ARG003
        """The vocabulary is the backbone's."""
        return 1

    def build(self, task: dict[str, Any], config: PreTrainedConfig, pooling: str) -> None:  # noqa: ARG002
        """See that the backbone has the language model."""
        check_language_model(task["name"], task["type"], self.language_model, config)

    def read(self, backbone: nn.Module, states: States, labels: torch.Tensor | None) -> torch.Tensor:
        """Logits (M, V) of the labelled tokens, row by row, or of all, (N, T, V), where no labels are given."""
        hidden_NTD = cast(torch.Tensor, states.last_hidden_state)
        if labels is None:
            return language_logits(backbone, hidden_NTD.flatten(0, 1)).unflatten(0, hidden_NTD.shape[:2])
        return language_logits(backbone, hidden_NTD[self.targets(labels) != IGNORE])

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """For each state, (N, T), the token that it is to tell."""
        return labels

    def dummy_labels(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Labels (N, L) with one labelled token, for a pass that only has to reach every weight."""
        labels = torch.full_like(input_ids, IGNORE)
        labels[:, -1] = 0
        return labels

    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """Labelled tokens of each row, (N, T) to (N,)."""
        return (self.targets(labels) != IGNORE).sum(1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (M, V) and labels (N, T), -100 where there is none, to (N,)."""
        targets_NT = self.targets(labels)
        known_NT = targets_NT != IGNORE
        losses_M = F.cross_entropy(at_least_float32(logits), targets_NT[known_NT], reduction="none")
        return losses_M.new_zeros(len(labels)).index_add(0, known_NT.nonzero()[:, 0], losses_M)

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The likeliest token at every labelled place, (N, T); -100 at the others."""
        known_NT = self.targets(labels) != IGNORE
        result = torch.full_like(labels, IGNORE)
        result[known_NT] = logits.argmax(-1)
        return result


class FillMaskHead(LanguageHead):
    """The words behind the mask."""

    language_model: ClassVar[str] = "masked"


class TextGenerationHead(LanguageHead):
    r"""The next word, by the chain rule :math:`P(w_1, ..., w_n) = \prod_i P(w_i \mid w_1, ..., w_{i-1})`."""

    language_model: ClassVar[str] = "causal"

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Every state tells the token behind it."""
        return F.pad(labels[:, 1:], (0, 1), value=IGNORE)


class Text2TextHead(LanguageHead):
    """A text from a text: the decoder tells the target token by token."""

    language_model: ClassVar[str] = "text2text"
    writes: ClassVar[bool] = True
    reads_decoder = True

    def decoder_ids(self, input_ids: torch.Tensor | None, labels: torch.Tensor | None) -> torch.Tensor | None:  # noqa: ARG002
        """The targets."""
        return labels

    def dummy_labels(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Targets of one token."""
        return torch.zeros_like(input_ids[:, :1])
