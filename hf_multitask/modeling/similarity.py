"""How near two texts are, each read by itself. Legend as in ``heads``; P pairs and G = 2P texts of an item."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig
from transformers.utils import logging

from .aliases import Open, Settings, TaskDict
from .examples import ONE, Example
from .heads import IGNORE, Head, at_least_float32, pooled_states
from .inputs import Encoder, as_text
from .keywords import check_whole
from .losses import precise
from .native import States, family_kind
from .readers import Reader, Reading, Row

logger = logging.get_logger(__name__)

# Embeddings of first and second texts, (N, P, D), and of hard negatives, (N, P, H, D), where there are some.
Texts = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]

NEGATIVES, COSINE, TRIPLET = "multiple_negatives", "cosine", "triplet"
DISTANCES = ("euclidean", "cosine")
# By loss, its arguments with their defaults, which are those of sentence-transformers.
PAIR_LOSSES: dict[str, dict[str, float | str]] = {
    NEGATIVES: {"scale": 20.0},
    COSINE: {},
    TRIPLET: {"margin": 5.0, "distance": DISTANCES[0]},
}


@dataclass(frozen=True)
class PairLoss:
    """The loss of a task on pairs.

    Args:
        name: of the loss.
        scale: of the cosines in the loss over a group.
        margin: by which the second text should be nearer than a negative.
        distance: of two embeddings in the loss of triplets.
        dims: the first dimensions of embeddings for which the loss is computed; all of them at once if None.
    """

    name: str
    scale: float
    margin: float
    distance: str
    dims: tuple[int, ...] | None


def pair_loss(task: Settings) -> PairLoss:
    """The loss in the dict of a task; ``cosine`` for pairs with scores if None, otherwise ``multiple_negatives``."""
    name = task.get("loss") or (NEGATIVES if task.get("label_column") is None else COSINE)
    kwargs: Mapping[str, Open] = task.get("loss_kwargs") or {}
    scale = kwargs.get("scale", task.get("scale") or PAIR_LOSSES[NEGATIVES]["scale"])
    margin, distance = (kwargs.get(key, PAIR_LOSSES[TRIPLET][key]) for key in ("margin", "distance"))
    dims = task.get("matryoshka_dims")
    return PairLoss(name, float(scale), float(margin), str(distance), tuple(dims) if dims else None)


def prompted(task: Settings, texts: Sequence[str]) -> list[str]:
    """Texts that begin with the prompt of a task, where it has one."""
    return [(task.get("prompt") or "") + text for text in texts]


class SentenceSimilarityHead(Head):
    r"""Normalized embeddings of texts, pooled from the states without layers of its own.

    Where pairs have scores, an item is a pair and its loss is :math:`(\cos(a, b) - s)^2` with the score s moved to 0
    to 1. Where they have none, an item is a pair of a fixed group of pairs :math:`(a_i, b_i)` and its loss is
    :math:`-\log \mathrm{softmax}_j(c \cos(a_i, b_j))_i`: the other pairs' second texts are the negatives, and so are
    the hard negatives of all pairs of the group
    (Efficient Natural Language Response Suggestion, 2017, section 4.4, https://arxiv.org/abs/1705.00652).
    With the loss ``triplet``, an item is a hard negative n of a pair and its loss is
    :math:`\max(0, d(a, b) - d(a, n) + m)` (In Defense of the Triplet Loss for Person Re-Identification, 2017,
    https://arxiv.org/abs/1703.07737).

    With ``matryoshka_dims``, the loss of an item is the sum of its losses for the first dimensions of the embeddings,
    normalized again (Matryoshka Representation Learning, NeurIPS 2022, https://arxiv.org/abs/2205.13147).

    .. note:: The first paper's negatives are all other pairs of the group. Here those texts are left out that are
       right: equal to :math:`a_i`, or to a second text of a pair whose first text is equal to :math:`a_i`. A negative
       of a triplet that is equal to one of its other texts does not count either.
    """

    reads_several: ClassVar[bool] = True
    stock_is_backbone: ClassVar[bool] = True

    @classmethod
    def outputs(cls, task: TaskDict) -> int:  # noqa: ARG003
        """An embedding, whatever the labels."""
        return 1

    def build(self, task: TaskDict, config: PreTrainedConfig, pooling: str) -> None:
        """Choose the pooling: the mean, or the last token of a causal backbone, where the family's own is set.

        Raises:
            ValueError: an embedding has fewer dimensions than ``matryoshka_dims`` says.
        """
        native = "last" if family_kind(config) == "causal" else "mean"
        self.pooling = native if pooling == "native" else pooling
        self.width: int = config.hidden_size
        self._set_options(task)

    def adopt(self, task: TaskDict) -> None:
        """See :meth:`Head.adopt`: the loss and the prompt."""
        super().adopt(task)
        self._set_options(task)
        if self.pair_loss.dims and self.width not in self.pair_loss.dims:
            logger.warning(
                f"Task '{task.get('name')}': `matryoshka_dims` are without {self.width}, so whole embeddings, which "
                f"the pipeline answers without truncate_dim, are not trained. Add {self.width}."
            )

    def _set_options(self, task: TaskDict) -> None:
        self.pair_loss = pair_loss(task)
        self.scale = self.pair_loss.scale
        self.prompt = task.get("prompt") or None
        if (most := max(self.pair_loss.dims or (1,))) > self.width:
            raise ValueError(
                f"Task '{task.get('name')}': `matryoshka_dims` should be {self.width} at most, the dimensions of an "
                f"embedding of the backbone. Found {most}. Leave it out."
            )

    def described(self) -> TaskDict:
        """See :meth:`Head.described`: what every text begins with."""
        return {} if self.prompt is None else {"prompt": self.prompt}

    def forward(
        self,
        states: States,
        input_ids: torch.Tensor | None,  # noqa: ARG002
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """States of single texts (M, L, D) to embeddings of length 1, (M, D)."""
        return F.normalize(at_least_float32(pooled_states(states.last_hidden_state, attention_mask, self.pooling)))  # type: ignore[arg-type]

    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """Pairs of each item, of (N, P) or (N, P, T) to (N,); of the loss of triplets their number."""
        return self._counts(labels).sum(1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Embeddings (N, G, D) and labels to (N,).

        Labels are scores (N, P); without scores (N, P, T), the numbers of the T texts of a pair, which are its two
        texts and its hard negatives, alike for equal texts.
        """
        return self._losses(logits, labels).sum(1)

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
        return (self._counts(labels) * weights.to(precise(weights.device))).sum(1)

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cosines of the pairs, (N, P); without scores, the nearest of a pair's own second text and its negatives.

        Of triplets, by how much the cosine of the pair is larger than that of the first text and a negative, (N, P, H).
        """
        first_NPD, second_NPD, negatives_NPHD = self._texts(logits, labels)
        if labels.dim() == 2:
            return _cosines(first_NPD, second_NPD)
        if negatives_NPHD is not None and self.pair_loss.name == TRIPLET:
            own_NP = _cosines(first_NPD, second_NPD)
            return own_NP.unsqueeze(2) - _cosines(first_NPD.unsqueeze(2), negatives_NPHD)
        return self._scores((first_NPD, second_NPD, negatives_NPHD), labels).argmax(2)

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The losses of the pairs, (N, P), 0 for pairs that are not there."""
        first_NPD, second_NPD, negatives_NPHD = texts = self._texts(logits, labels)
        if self.pair_loss.dims is None:
            return self._losses_of(texts, labels)
        losses = []
        for dim in self.pair_loss.dims:
            negatives = None if negatives_NPHD is None else shortened(negatives_NPHD, dim)
            losses.append(self._losses_of((shortened(first_NPD, dim), shortened(second_NPD, dim), negatives), labels))
        return torch.stack(losses).sum(0)

    def _losses_of(self, texts: Texts, labels: torch.Tensor) -> torch.Tensor:
        first_NPD, second_NPD, negatives_NPHD = texts
        there_NP = self._there(labels)
        if labels.dim() == 2:
            errors_NP = (_cosines(first_NPD, second_NPD) - labels.to(first_NPD.dtype)) ** 2
            return errors_NP.masked_fill(~there_NP, 0.0)
        if self.pair_loss.name == TRIPLET and negatives_NPHD is not None:
            own_NP = self._distances(first_NPD, second_NPD)
            others_NPH = self._distances(first_NPD.unsqueeze(2), negatives_NPHD)
            losses_NPH = F.relu(own_NP.unsqueeze(2) - others_NPH + self.pair_loss.margin)
            return losses_NPH.masked_fill(~_triplets(labels), 0.0).sum(2)
        scores_NPC = self._scores(texts, labels)
        own_P = torch.arange(labels.shape[1], device=labels.device)
        targets_NP = own_P.expand_as(there_NP).masked_fill(~there_NP, IGNORE)
        return F.cross_entropy(scores_NPC.transpose(1, 2), targets_NP, ignore_index=IGNORE, reduction="none")

    def _distances(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if self.pair_loss.distance == "cosine":
            return 1 - _cosines(one, other)
        return torch.linalg.vector_norm(one - other, dim=-1)

    def _there(self, labels: torch.Tensor) -> torch.Tensor:
        """Which pairs are there, (N, P)."""
        return (labels if labels.dim() == 2 else labels[..., 0]) != IGNORE

    def _counts(self, labels: torch.Tensor) -> torch.Tensor:
        """Items of the pairs, (N, P)."""
        return _triplets(labels).sum(2) if self.pair_loss.name == TRIPLET else self._there(labels)

    def _texts(self, logits: torch.Tensor, labels: torch.Tensor) -> Texts:
        """Embeddings of first and second texts, (N, P, D), and of hard negatives, (N, P, H, D), of (N, G, D).

        The texts of an item are those of its pairs one after the other, of which each has as many as its label.
        """
        if labels.dim() == 2 or labels.shape[2] == 2:
            return logits[:, 0::2], logits[:, 1::2], None
        counts_NP = (labels != IGNORE).sum(2)
        starts_NP = counts_NP.cumsum(1) - counts_NP
        places_NPT = starts_NP.unsqueeze(2) + torch.arange(labels.shape[2], device=labels.device)
        items_N = torch.arange(len(logits), device=labels.device)
        texts_NPTD = logits[items_N.view(-1, 1, 1), places_NPT.clamp(max=logits.shape[1] - 1)]
        return texts_NPTD[:, :, 0], texts_NPTD[:, :, 1], texts_NPTD[:, :, 2:]

    def _scores(self, texts: Texts, labels_NPT: torch.Tensor) -> torch.Tensor:
        """Scaled cosines of first texts and candidates (N, P, C), the lowest number for those right but not own.

        The candidates are the second texts, and the hard negatives behind them.
        """
        first_NPD, second_NPD, negatives_NPHD = texts
        first_NP, second_NP = labels_NPT[..., 0], labels_NPT[..., 1]
        candidates_NCD, numbers_NC = second_NPD, second_NP
        if negatives_NPHD is not None:
            candidates_NCD = torch.cat([second_NPD, negatives_NPHD.flatten(1, 2)], 1)
            numbers_NC = torch.cat([second_NP, labels_NPT[..., 2:].flatten(1)], 1)
        scores_NPC = self.scale * first_NPD @ candidates_NCD.transpose(1, 2)
        same_first_NPP = first_NP.unsqueeze(2) == first_NP.unsqueeze(1)
        same_second_NPC = second_NP.unsqueeze(2) == numbers_NC.unsqueeze(1)
        right_NPC = same_first_NPP.float() @ same_second_NPC.float() > 0
        right_NPC |= first_NP.unsqueeze(2) == numbers_NC.unsqueeze(1)
        own_PC = torch.eye(*right_NPC.shape[1:], dtype=torch.bool, device=labels_NPT.device)
        left_out_NPC = (right_NPC & ~own_PC) | (numbers_NC == IGNORE).unsqueeze(1)
        return scores_NPC.masked_fill(left_out_NPC, torch.finfo(scores_NPC.dtype).min)


def _cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first * second).sum(-1)


def _triplets(labels_NPT: torch.Tensor) -> torch.Tensor:
    """Which hard negatives are there and differ from both texts of their pair, (N, P, H)."""
    negatives_NPH = labels_NPT[..., 2:]
    right_NPH = (negatives_NPH == labels_NPT[..., :1]) | (negatives_NPH == labels_NPT[..., 1:2])
    return (negatives_NPH != IGNORE) & ~right_NPH


def shortened(embeddings: torch.Tensor, dim: int) -> torch.Tensor:
    """The first dimensions of embeddings (..., D), of length 1 again."""
    return F.normalize(embeddings[..., :dim], dim=-1)


def check_truncation(dim: object, heads: Iterable[object]) -> None:
    """Check the argument ``truncate_dim`` of a pipeline, where it is given.

    Raises:
        ValueError: no head answers embeddings, or none of so many dimensions.
    """
    if dim is None:
        return
    widths = [head.width for head in heads if isinstance(head, SentenceSimilarityHead)]
    if not widths:
        raise ValueError("`truncate_dim` is for tasks that answer embeddings, and the model has none. Leave it out.")
    check_whole("truncate_dim", dim, 1)
    if isinstance(dim, int) and dim > min(widths):
        raise ValueError(
            f"`truncate_dim` should be {min(widths)} at most, the dimensions of an embedding. Found `truncate_dim = "
            f"{dim}`. Leave it out."
        )


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
        texts = prompted(task, [as_text(row[key]) for key in ("text", "text_pair") if row.get(key) is not None])
        rows, _ = self._encode(task, encoder, texts)
        keys = [("text", text, None, encoder.limit, encoder.language) for text in texts]
        return Reading(list(zip(keys, rows, strict=True)), (len(texts), None))

    def truncated(self, reading: Reading, dim: int | None) -> Reading:
        """See :class:`Reader`."""
        return replace(reading, rest=(len(reading.rows), dim))

    def answer(self, task: Row, logits: torch.Tensor, rest: Open, model: Open, tokenizer: Open) -> Open:  # noqa: ARG002
        """The embedding of a text; the cosine of two. Both are those of the first dimensions where it is truncated."""
        count, dim = rest
        if count == 1:
            return {"embedding": logits[0, :dim].tolist()}
        first, second = logits[:2] if dim is None else shortened(logits[:2], dim)
        return {"score": float(first @ second)}
