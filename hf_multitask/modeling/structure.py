"""What the tags of a task are decoded by: their scheme, the decoding, and the scores of a chain.

Legend: N sequences, L tokens, T tokens that count of the longest sequence, M of all, C tags.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from .aliases import Settings, Values
from .chain import LinearChain, Scores, best_tags, in_front, log_marginals, taken
from .schemes import ARGMAX, CRF, allowed, check_structure, decoding_in, scheme_in


class Tagged(NamedTuple):
    """The tags of M tokens, (M,), and a probability of each, (M,)."""

    tags: torch.Tensor
    scores: torch.Tensor


@dataclass(frozen=True)
class Structure:
    """How the tags of a text depend on each other.

    Args:
        decoding: see :data:`DECODINGS`.
        scheme: of the tags; None if they mark no spans.
        names: of the C tags.
    """

    decoding: str = ARGMAX
    scheme: str | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Settings) -> "Structure":
        """That of a task by its dict.

        Raises:
            ValueError: the options do not fit each other or the labels.
        """
        try:
            check_structure(task)
        except ValueError as problem:
            raise ValueError(f"Task '{task.get('name')}': {problem}") from None
        return cls(decoding_in(task), scheme_in(task), tuple(task.get("label_names") or ()))

    @property
    def chained(self) -> bool:
        """Whether it needs the scores of a chain."""
        return self.decoding == CRF

    def tagged(self, logits_NLC: torch.Tensor, there_NL: torch.Tensor, chain: LinearChain | None) -> Tagged | None:
        """The best sequences of tags that the scheme allows; None if tags do not depend on each other.

        The score of a tag is its probability by the softmax of its token, and with a chain its marginal probability
        over the sequences that the scheme allows.

        Args:
            logits_NLC: of all tokens.
            there_NL: which of them count.
            chain: its scores, if it needs some.
        """
        if self.decoding == ARGMAX:
            return None
        order_NT, there_NT = in_front(there_NL, cut=True)
        logits_NTC = taken(logits_NLC, order_NT)
        if not order_NT.shape[1]:
            return Tagged(order_NT[there_NT], logits_NTC.new_zeros(0))
        scores = self._scores(logits_NTC, chain)
        tags_NT = best_tags(logits_NTC, there_NT, scores)
        log_NTC = logits_NTC.log_softmax(2) if chain is None else log_marginals(logits_NTC, there_NT, scores)
        scores_NT = log_NTC.gather(2, tags_NT.unsqueeze(2)).squeeze(2).exp()
        return Tagged(tags_NT[there_NT], scores_NT[there_NT])

    def _scores(self, like: torch.Tensor, chain: LinearChain | None) -> Scores:
        """The scores of sequences, minus infinity for what the scheme does not allow."""
        if chain is not None:
            scores = chain.scores(like)
        else:
            zeros = like.new_zeros(like.shape[-1])
            scores = Scores(zeros, zeros, zeros.expand(len(zeros), -1))
        if self.scheme is None:
            return scores
        pairs = zip(scores, allowed(self.names, self.scheme), strict=True)
        return Scores(*(one.masked_fill(~rule.to(one.device), -torch.inf) for one, rule in pairs))

    def described(self, chain: LinearChain | None) -> Values:
        """What a reader of the logits needs to decode them, as plain values; nothing for single tags."""
        if self.decoding == ARGMAX:
            return {}
        found: Values = {"decoding": self.decoding, "scheme": self.scheme}
        if chain is None:
            return found
        return {**found, "crf": {name: one.tolist() for name, one in chain.named_parameters()}}
