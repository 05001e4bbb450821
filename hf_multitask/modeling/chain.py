"""Sequences of tags as linear chains: the loss of a conditional random field, the best sequence, marginals.

Legend: N sequences, L tokens, T tagged tokens of the longest sequence, C tags.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import nn


class Scores(NamedTuple):
    """Scores of a sequence's first tag, (C,), its last, (C,), and of tags that follow each other, (C, C) by row."""

    starts: torch.Tensor
    ends: torch.Tensor
    steps: torch.Tensor


class LinearChain(nn.Module):
    r"""The scores of a conditional random field over a sequence of tags, beside those of single tags.

    The score of tags :math:`y_1 \dots y_T` with logits :math:`x_t` is
    :math:`s(y) = a_{y_1} + \sum_t x_{t, y_t} + \sum_t A_{y_t, y_{t+1}} + b_{y_T}`, and their probability
    :math:`e^{s(y)} / Z`, where Z sums over all sequences (Conditional Random Fields, ICML 2001; Neural Architectures
    for Named Entity Recognition, NAACL 2016, section 2.2, https://arxiv.org/abs/1603.01360).

    All scores begin as 0, with which the loss and the best sequence are those of a softmax for every token.

    Args:
        num_tags: C.
    """

    # By how much the learning rate of these few weights is larger than that of the head, as they begin as 0 and would
    # hardly move at the rate of a pretrained backbone.
    rate: ClassVar[float] = 100.0

    def __init__(self, num_tags: int) -> None:
        super().__init__()
        self.starts = nn.Parameter(torch.zeros(num_tags))
        self.ends = nn.Parameter(torch.zeros(num_tags))
        self.transitions = nn.Parameter(torch.zeros(num_tags, num_tags))

    def forward(self, logits_NLC: torch.Tensor, tags_NL: torch.Tensor, there_NL: torch.Tensor) -> torch.Tensor:
        """The negative logarithm of the probability of the tags of each sequence, (N,); 0 for one without tokens.

        Args:
            logits_NLC: of all tokens.
            tags_NL: of the tokens that count; any tag for others.
            there_NL: which tokens count.
        """
        # The host knows the longest sequence only where it need not wait for the device.
        order_NT, there_NT = in_front(there_NL, cut=there_NL.device.type == "cpu")
        if not order_NT.shape[1]:
            return logits_NLC.sum((1, 2)) * 0
        logits_NTC, tags_NT = taken(logits_NLC, order_NT), tags_NL.gather(1, order_NT).masked_fill(~there_NT, 0)
        scores = self.scores(logits_NTC)
        single_NT = logits_NTC.gather(2, tags_NT.unsqueeze(2)).squeeze(2)
        step_NT = scores.steps[tags_NT[:, :-1], tags_NT[:, 1:]]
        last_N1 = tags_NT.gather(1, (there_NT.sum(1, keepdim=True) - 1).clamp(min=0))
        score_N = scores.starts[tags_NT[:, 0]] + scores.ends[last_N1.squeeze(1)]
        score_N = score_N + single_NT.masked_fill(~there_NT, 0).sum(1) + step_NT.masked_fill(~there_NT[:, 1:], 0).sum(1)
        return (log_partition(logits_NTC, there_NT, scores) - score_N).masked_fill(~there_NT[:, 0], 0)

    def scores(self, like: torch.Tensor) -> Scores:
        """The scores of the chain, in the dtype and on the device of some logits."""
        return Scores(self.starts.to(like), self.ends.to(like), self.transitions.to(like))


def in_front(there_NL: torch.Tensor, *, cut: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The places of the tokens that count, in their order and before all others, (N, T), and which of them count.

    Args:
        there_NL: which tokens count.
        cut: whether T is as small as it can be, which the host has to read; L otherwise.
    """
    order_NL = (~there_NL).to(torch.uint8).argsort(dim=1, stable=True)
    there_NT = there_NL.gather(1, order_NL)
    most = int(there_NL.sum(1).max()) if cut and len(there_NL) else there_NL.shape[1]
    return order_NL[:, :most], there_NT[:, :most]


def taken(values_NLC: torch.Tensor, order_NT: torch.Tensor) -> torch.Tensor:
    """The values of tokens by their places, (N, T, C)."""
    return values_NLC.gather(1, order_NT.unsqueeze(2).expand(-1, -1, values_NLC.shape[2]))


def log_partition(logits_NTC: torch.Tensor, there_NT: torch.Tensor, scores: Scores) -> torch.Tensor:
    """The logarithm of the sum of the exponentiated scores of all sequences, (N,), by the forward algorithm.

    The scores of steps are exponentiated once, relative to the largest that leads to a tag, and those of sequences
    relative to the largest of a token. They have to be finite.
    """
    largest_C = scores.steps.detach().amax(0)
    factors_CC = (scores.steps - largest_C).exp()
    alpha_NC = scores.starts + logits_NTC[:, 0]
    for token in range(1, logits_NTC.shape[1]):
        largest_N1 = alpha_NC.detach().amax(1, keepdim=True)
        # A product of matrices would be rounded where mixed precision or TF32 is on.
        sum_NC = ((alpha_NC - largest_N1).exp().unsqueeze(2) * factors_CC).sum(1)
        next_NC = sum_NC.log() + largest_N1 + largest_C + logits_NTC[:, token]
        alpha_NC = torch.where(there_NT[:, token, None], next_NC, alpha_NC)
    return (alpha_NC + scores.ends).logsumexp(1)


def _alphas(logits_NTC: torch.Tensor, there_NT: torch.Tensor, scores: Scores) -> list[torch.Tensor]:
    """For each token, the logarithm of the sum over the sequences that end there with each tag, (N, C).

    Scores may be minus infinity.
    """
    alpha_NC = scores.starts + logits_NTC[:, 0]
    alphas = [alpha_NC]
    for token in range(1, logits_NTC.shape[1]):
        next_NC = (alpha_NC.unsqueeze(2) + scores.steps).logsumexp(1) + logits_NTC[:, token]
        alpha_NC = torch.where(there_NT[:, token, None], next_NC, alpha_NC)
        alphas.append(alpha_NC)
    return alphas


def log_marginals(logits_NTC: torch.Tensor, there_NT: torch.Tensor, scores: Scores) -> torch.Tensor:
    """The logarithm of the probability of every tag of a token, over all sequences, (N, T, C)."""
    alphas = _alphas(logits_NTC, there_NT, scores)
    beta_NC = scores.ends.expand_as(alphas[0])
    betas = [beta_NC]
    for token in range(logits_NTC.shape[1] - 1, 0, -1):
        before_NC = (scores.steps + (logits_NTC[:, token] + beta_NC).unsqueeze(1)).logsumexp(2)
        beta_NC = torch.where(there_NT[:, token, None], before_NC, beta_NC)
        betas.append(beta_NC)
    return (torch.stack(alphas, 1) + torch.stack(betas[::-1], 1)).log_softmax(2)


def best_tags(logits_NTC: torch.Tensor, there_NT: torch.Tensor, scores: Scores) -> torch.Tensor:
    """The tags with the highest score, (N, T), by the algorithm of Viterbi; any tags behind the end of a sequence."""
    best_NC = scores.starts + logits_NTC[:, 0]
    same_NC = torch.arange(best_NC.shape[1], device=best_NC.device).expand_as(best_NC)
    origins = []
    for token in range(1, logits_NTC.shape[1]):
        next_NC, origin_NC = (best_NC.unsqueeze(2) + scores.steps).max(1)
        there_N1 = there_NT[:, token, None]
        best_NC = torch.where(there_N1, next_NC + logits_NTC[:, token], best_NC)
        origins.append(torch.where(there_N1, origin_NC, same_NC))
    tag_N1 = (best_NC + scores.ends).argmax(1, keepdim=True)
    tags = [tag_N1]
    for origin_NC in reversed(origins):
        tag_N1 = origin_NC.gather(1, tag_N1)
        tags.append(tag_N1)
    return torch.cat(tags[::-1], 1)
