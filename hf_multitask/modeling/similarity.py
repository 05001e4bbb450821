"""How near two texts are, each read by itself. Legend as in ``heads``; P pairs and G = 2P texts of an item."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig

from .aliases import Open, TaskDict
from .examples import ONE, Example
from .heads import IGNORE, Head, at_least_float32, pooled_states
from .inputs import Encoder, as_text
from .losses import precise
from .native import States, family_kind
from .readers import Reader, Reading, Row


class SentenceSimilarityHead(Head):
    r"""Normalized embeddings of texts, pooled from the states without layers of its own.

    Where pairs have scores, an item is a pair and its loss is :math:`(\cos(a, b) - s)^2` with the score s moved to 0
    to 1. Where they have none, an item is a pair of a fixed group of pairs :math:`(a_i, b_i)` and its loss is
    :math:`-\log \mathrm{softmax}_j(c \cos(a_i, b_j))_i`: the other pairs' second texts are the negatives
    (Efficient Natural Language Response Suggestion, 2017, section 4.4, https://arxiv.org/abs/1705.00652).

    .. note:: The paper's negatives are all other pairs of the group. Here those are left out whose second text is
       right: equal to :math:`a_i`, or to a second text of a pair whose first text is equal to :math:`a_i`.
    """

    reads_several: ClassVar[bool] = True
    stock_is_backbone: ClassVar[bool] = True

    @classmethod
    def outputs(cls, task: TaskDict) -> int:  # noqa: ARG003
        """An embedding, whatever the labels."""
        return 1

    def build(self, task: TaskDict, config: PreTrainedConfig, pooling: str) -> None:
        """Choose the pooling: the mean, or the last token of a causal backbone, where the family's own is set."""
        native = "last" if family_kind(config) == "causal" else "mean"
        self.pooling = native if pooling == "native" else pooling
        self.scored = task.get("label_column") is not None
        self.scale = float(task.get("scale") or 20.0)

    def forward(
        self,
        states: States,
        input_ids: torch.Tensor | None,  # noqa: ARG002
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """States of single texts (M, L, D) to embeddings of length 1, (M, D)."""
        return F.normalize(at_least_float32(pooled_states(states.last_hidden_state, attention_mask, self.pooling)))  # type: ignore[arg-type]

    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """Pairs of each item, of (N, P) or (N, P, 2) to (N,)."""
        return self._there(labels).sum(1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Embeddings (N, G, D) and labels to (N,).

        Labels are scores (N, P); without scores (N, P, 2), the numbers of both texts of a pair, alike for equal texts.
        """
        return self._losses(logits, labels).sum(1)

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The losses of the pairs, (N, P), 0 for pairs that are not there."""
        first_NPD, second_NPD = logits[:, 0::2], logits[:, 1::2]
        there_NP = self._there(labels)
        if self.scored:
            errors_NP = (_cosines(first_NPD, second_NPD) - labels.to(logits.dtype)) ** 2
            return errors_NP.masked_fill(~there_NP, 0.0)
        scores_NPP = self._scores(first_NPD, second_NPD, labels)
        own_P = torch.arange(labels.shape[1], device=labels.device)
        targets_NP = own_P.expand_as(there_NP).masked_fill(~there_NP, IGNORE)
        return F.cross_entropy(scores_NPP.transpose(1, 2), targets_NP, ignore_index=IGNORE, reduction="none")

    def weighted_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See :meth:`Head.weighted_loss`: a row is a pair, of weights (N, P)."""
        return self.loss(logits, labels) if weights is None else (self._losses(logits, labels) * weights).sum(1)

    def weighted_items(
        self,
        labels: torch.Tensor,
        weights: torch.Tensor | None = None,
        *,
        classes: bool = True,  # noqa: ARG002
    ) -> torch.Tensor:
        """See :meth:`Head.weighted_items`: a row is a pair, of weights (N, P)."""
        if weights is None:
            return self.items(labels)
        return (self._there(labels) * weights.to(precise(weights.device))).sum(1)

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cosines of the pairs, (N, P); without scores, the nearest of a pair's own second text and its negatives."""
        first_NPD, second_NPD = logits[:, 0::2], logits[:, 1::2]
        if self.scored:
            return _cosines(first_NPD, second_NPD)
        return self._scores(first_NPD, second_NPD, labels).argmax(2)

    def _there(self, labels: torch.Tensor) -> torch.Tensor:
        """Which pairs are there, (N, P)."""
        return (labels if self.scored else labels[..., 0]) != IGNORE

    def _scores(self, first_NPD: torch.Tensor, second_NPD: torch.Tensor, labels_NP2: torch.Tensor) -> torch.Tensor:
        """Scaled cosines of first and second texts, the lowest number where the second is neither own nor negative."""
        scores_NPP = self.scale * first_NPD @ second_NPD.transpose(1, 2)
        first_NP, second_NP = labels_NP2.unbind(-1)
        same_first_NPP = first_NP.unsqueeze(2) == first_NP.unsqueeze(1)
        same_second_NPP = second_NP.unsqueeze(2) == second_NP.unsqueeze(1)
        right_NPP = same_first_NPP.float() @ same_second_NPP.float() > 0
        right_NPP |= first_NP.unsqueeze(2) == second_NP.unsqueeze(1)
        own_PP = torch.eye(labels_NP2.shape[1], dtype=torch.bool, device=labels_NP2.device)
        left_out_NPP = (right_NPP & ~own_PP) | ~self._there(labels_NP2).unsqueeze(1)
        return scores_NPP.masked_fill(left_out_NPP, torch.finfo(scores_NPP.dtype).min)


def _cosines(first_NPD: torch.Tensor, second_NPD: torch.Tensor) -> torch.Tensor:
    return (first_NPD * second_NPD).sum(-1)


_CODE = """tokens = tokenizer(["Ada loved it.", "She liked it."], padding=True, return_tensors="pt")
with torch.no_grad():
    states = model(**tokens).last_hidden_state
print(states.shape)
"""


class SimilarityReader(Reader):
    """A text, or two of them."""

    examples: ClassVar[tuple[Example, ...]] = (ONE,)
    stock_code: ClassVar[str | None] = _CODE

    def takes(self, task: Row) -> str:  # noqa: ARG002
        """See :class:`Reader`."""
        return "single texts and pairs"

    def accepts(self, task: Row, row: Row, encoder: Encoder) -> bool:  # noqa: ARG002
        """See :class:`Reader`."""
        return row.get("text") is not None

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """See :class:`Reader`."""
        texts = [as_text(row[key]) for key in ("text", "text_pair") if row.get(key) is not None]
        rows, _ = self._encode(task, encoder, texts)
        keys = [("text", text, None, encoder.limit, encoder.language) for text in texts]
        return Reading(list(zip(keys, rows, strict=True)), len(texts))

    def answer(self, task: Row, logits: torch.Tensor, rest: Open, model: Open, tokenizer: Open) -> Open:  # noqa: ARG002
        """The embedding of a text; the cosine of two."""
        if rest == 1:
            return {"embedding": logits[0].tolist()}
        return {"score": float(logits[0] @ logits[1])}
