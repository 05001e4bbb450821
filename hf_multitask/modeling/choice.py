"""Which of several texts is the right one. Legend as in ``heads``; G choices of an item."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from transformers import AutoModelForMultipleChoice, PreTrainedConfig

from .aliases import Open, TaskDict
from .examples import Example
from .heads import Head, PooledLinear, at_least_float32
from .inputs import Encoder, as_text
from .native import Over, States
from .readers import Reader, Reading, Row


class MultipleChoiceHead(Head):
    """A score for each choice of a question. An item is a question; its loss is the cross-entropy over its choices."""

    auto_class = AutoModelForMultipleChoice
    reads_several: ClassVar[bool] = True
    absent: ClassVar[float] = float("-inf")

    @classmethod
    def outputs(cls, task: TaskDict) -> int:  # noqa: ARG003
        """One score a choice."""
        return 1

    def build(self, task: TaskDict, config: PreTrainedConfig, pooling: str) -> None:
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
        # The stock class takes (N, G, L) and flattens it; here every choice is on its own.
        ids_ML = torch.zeros_like(states.last_hidden_state[..., 0], dtype=torch.long)  # type: ignore[index]
        native = Over(self.native, self.native.base_model_prefix, states)
        return native.forward(input_ids=ids_ML.unsqueeze(1)).logits.squeeze(-1)

    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """1 per question."""
        return torch.ones_like(labels)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (N, G), minus infinity where a question has fewer choices, and labels (N,) to (N,).

        Smoothing spreads a share of the label over the choices of the question.
        """
        logits_NG, smoothing = at_least_float32(logits), self.loss_options.smoothing
        if not smoothing:
            return F.cross_entropy(logits_NG, labels, reduction="none")
        there_NG = logits_NG > self.absent
        negative_NG = (there_NG / there_NG.sum(1, keepdim=True)).to(logits_NG).mul_(-smoothing)
        negative_NG.scatter_(1, labels.unsqueeze(1), smoothing - 1, reduce="add")
        return (negative_NG * logits_NG.log_softmax(1).masked_fill(~there_NG, 0.0)).sum(1)


_EXAMPLE = Example(
    '{"question": "Ada Lovelace loved", "choices": ["this place.", "nothing."]}',
    '["Ada Lovelace loved"] * 2, ["this place.", "nothing."], padding=True',
    rows=2,
)
_CODE = """choices = ["this place.", "nothing."]
tokens = tokenizer(["Ada Lovelace loved"] * len(choices), choices, padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**{name: value.unsqueeze(0) for name, value in tokens.items()}).logits
print(choices[int(logits.argmax())])
"""


class ChoiceReader(Reader):
    """A question and its choices."""

    fields: ClassVar[tuple[str, ...]] = ("question", "choices")
    examples: ClassVar[tuple[Example, ...]] = (_EXAMPLE,)
    stock_code: ClassVar[str | None] = _CODE

    def takes(self, task: Row) -> str:  # noqa: ARG002
        """See :class:`Reader`."""
        return "{'question': ..., 'choices': [...]}"

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """See :class:`Reader`."""
        if not isinstance(row["choices"], list | tuple) or not row["choices"]:
            raise ValueError(f"Task '{task['name']}' needs a list of one choice or more. Found {row['choices']!r}.")
        choices = [as_text(choice) for choice in row["choices"]]
        question = as_text(row["question"])
        rows, _ = self._encode(task, encoder, [question] * len(choices), choices)
        key = ("choice", question, tuple(choices), encoder.limit)
        return Reading([((*key, number), row) for number, row in enumerate(rows)], choices)

    def answer(self, task: Row, logits: torch.Tensor, rest: Open, model: Open, tokenizer: Open) -> Open:  # noqa: ARG002
        """The best choice: its number, text and probability."""
        score, best = logits[: len(rest)].softmax(-1).max(-1)
        return {"index": int(best), "choice": rest[int(best)], "score": float(score)}
