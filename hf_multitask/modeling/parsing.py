"""Dependencies between the words of a text. Legend as in ``heads``.

Also: T words, S tokens of all windows of a text, F features of a token, A of them of arcs and R of relations.
"""

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .aliases import Open, TaskDict
from .heads import IGNORE, Head, at_least_float32
from .inputs import Encoder
from .native import States
from .readers import Reading, Row
from .tags import TagReader
from .trees import best_tree
from .words import NO_TOKEN

ARCS, RELATIONS = 500, 100  # the sizes of the paper
_SLOPE = 0.1  # of the paper's rectifier, below 0


class Projection(nn.Linear):
    """A layer whose outputs begin with the variance of its inputs: small ones, multiplied, would hardly train."""

    def set_fresh(self) -> None:
        """Set weights that are not loaded."""
        init.xavier_uniform_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)


class DependencyParsingHead(Head):
    r"""A head and a relation for every word, by biaffine attention over the first tokens of the words.

    With features :math:`d` of a word and :math:`h` of a possible head, another word or the root, whose features are
    learned, an arc has the score :math:`d^\top U h + u^\top h`, and a relation c of the two the score
    :math:`[d; 1]^\top U_c [h; 1]` (Deep Biaffine Attention for Neural Dependency Parsing, ICLR 2017, section 3,
    https://arxiv.org/abs/1611.01734). An item is a word; its loss is the cross-entropy of its head among the root and
    all words of the text, and that of its relation, given this head. The answer is the tree with the highest
    probability, see :func:`best_tree`.

    .. note:: The paper reads the states of an LSTM over words, and drops features at a rate of 0.33. Here the dropout
       is that of the backbone.

    The logits are the features of the tokens, (N, L, 2A + 2R), of which arcs and relations are computed for words.
    """

    beyond_graph: ClassVar[str | None] = "compares words by weights of its head, which the graph has no output for"

    def build(self, task: TaskDict, config: PreTrainedConfig, pooling: str) -> None:  # noqa: ARG002
        """Make the layers, which no family has."""
        given = getattr(config, "classifier_dropout", None)
        self.dropout = nn.Dropout(getattr(config, "hidden_dropout_prob", 0.1) if given is None else given)
        self.features = Projection(config.hidden_size, 2 * ARCS + 2 * RELATIONS)
        self.arcs = Projection(ARCS, ARCS)
        self.relations = Projection(RELATIONS + 1, self.num_labels * (RELATIONS + 1), bias=False)
        self.root = nn.Parameter(torch.zeros(ARCS + RELATIONS))

    def forward(
        self,
        states: States,
        input_ids: torch.Tensor | None,  # noqa: ARG002
        attention_mask: torch.Tensor | None,  # noqa: ARG002
    ) -> torch.Tensor:
        """(N, L, D) to (N, L, 2A + 2R): of arcs as a dependent and as a head, of relations likewise."""
        features = self.dropout(F.leaky_relu(self.features(self.dropout(states.last_hidden_state)), _SLOPE))
        dependents, rest = features.split([ARCS, ARCS + 2 * RELATIONS], -1)
        return torch.cat([self.arcs(dependents), rest], -1)

    def loss_parameters(self) -> Iterable[nn.Parameter]:
        """See :meth:`Head.loss_parameters`: the root, and what relations are compared by."""
        return (self.root, *self.relations.parameters())

    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """Words that have a token, and whose heads have one, (N, T, 3) to (N,)."""
        return _trained(labels).sum(1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (N, L, F) or (N, G, L, F) and, for each word, the place of its token, head and relation, to (N,).

        The place is that among the tokens of all windows. Labels (N, T, 3) are -100 for words that are not there, and a
        place is -1 for words without a token.
        """
        words_NTF = _of_words(logits, labels[..., 0])
        trained_NT, heads_NT, relations_NT = _trained(labels), labels[..., 1], labels[..., 2]
        heads_NT = heads_NT.masked_fill(~trained_NT, IGNORE)
        arcs_NTT = self._arcs(words_NTF, labels[..., 0] >= 0)
        losses_NT = F.cross_entropy(arcs_NTT.transpose(1, 2), heads_NT, ignore_index=IGNORE, reduction="none")
        known_NT = relations_NT.masked_fill(~trained_NT | (relations_NT >= self.num_labels), IGNORE)
        scores_NTC = self._relations(words_NTF, heads_NT.clamp(min=0))
        of_relations = F.cross_entropy(scores_NTC.transpose(1, 2), known_NT, ignore_index=IGNORE, reduction="none")
        return (losses_NT + of_relations).sum(1)

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """See :meth:`parsed`."""
        return self.parsed(logits, labels[..., 0])

    def references(self, labels: torch.Tensor) -> torch.Tensor:
        """Heads and relations, (N, T, 2)."""
        return labels[..., 1:]

    @torch.no_grad()
    def parsed(self, logits: torch.Tensor, places_NT: torch.Tensor) -> torch.Tensor:
        """Head, relation and their probability for every word, (N, T, 3); -100 for words without a token.

        Args:
            logits: (N, L, F) or (N, G, L, F).
            places_NT: of the words, below 0 for those without a token.
        """
        words_NTF, there_NT = _of_words(logits, places_NT), places_NT >= 0
        arcs_NTT = self._arcs(words_NTF, there_NT).log_softmax(2)
        heads_NT = _trees(arcs_NTT, there_NT)
        best = self._relations(words_NTF, heads_NT).softmax(2).max(2)
        scores_NT = arcs_NTT.gather(2, heads_NT.unsqueeze(2)).squeeze(2).exp() * best.values
        found_NT3 = torch.stack([heads_NT.double(), best.indices.double(), scores_NT.double()], 2)
        return found_NT3.masked_fill(~there_NT.unsqueeze(2), IGNORE)

    def _arcs(self, words_NTF: torch.Tensor, there_NT: torch.Tensor) -> torch.Tensor:
        """The scores of words with the root and each other as heads, (N, T, 1 + T)."""
        dependents_NTA, heads_NTA = words_NTF[..., :ARCS], words_NTF[..., ARCS : 2 * ARCS]
        with torch.autocast(words_NTF.device.type, enabled=False):
            scores_NTT = dependents_NTA @ self._with_root(heads_NTA, self.root[:ARCS]).transpose(1, 2)
        itself_TT = torch.eye(there_NT.shape[1], dtype=torch.bool, device=there_NT.device)
        never_NTT = F.pad(itself_TT | ~there_NT.unsqueeze(1), (1, 0))
        return scores_NTT.masked_fill(never_NTT, torch.finfo(scores_NTT.dtype).min)

    def _relations(self, words_NTF: torch.Tensor, heads_NT: torch.Tensor) -> torch.Tensor:
        """The scores of the relations of words with some heads, (N, T, C)."""
        dependents_NTR, heads_NTR = words_NTF[..., 2 * ARCS :].split(RELATIONS, -1)
        with_root_NTR = self._with_root(heads_NTR, self.root[ARCS:])
        own_NTR = with_root_NTR.gather(1, heads_NT.unsqueeze(2).expand(-1, -1, RELATIONS))
        with torch.autocast(words_NTF.device.type, enabled=False):
            sides_NTCR = F.linear(F.pad(dependents_NTR, (0, 1), value=1.0), self.relations.weight.to(words_NTF))
            sides_NTCR = sides_NTCR.unflatten(2, (self.num_labels, RELATIONS + 1))
            return (sides_NTCR @ F.pad(own_NTR, (0, 1), value=1.0).unsqueeze(3)).squeeze(3)

    @staticmethod
    def _with_root(features_NTF: torch.Tensor, root_F: torch.Tensor) -> torch.Tensor:
        """Features of words behind those of the root."""
        return torch.cat([root_F.to(features_NTF).expand(len(features_NTF), 1, -1), features_NTF], 1)


def _trained(labels_NT3: torch.Tensor) -> torch.Tensor:
    """Which words have a token, and a head that has one, (N, T)."""
    there_NT, heads_NT = labels_NT3[..., 0] >= 0, labels_NT3[..., 1].clamp(min=0)
    return there_NT & F.pad(there_NT, (1, 0), value=True).gather(1, heads_NT)


def _of_words(logits: torch.Tensor, places_NT: torch.Tensor) -> torch.Tensor:
    """The features of words by the places of their tokens, (N, T, F); any for words without one."""
    tokens_NSF = at_least_float32(logits).flatten(1, -2)
    return tokens_NSF.gather(1, places_NT.clamp(min=0).unsqueeze(2).expand(-1, -1, tokens_NSF.shape[2]))


def _trees(arcs_NTT: torch.Tensor, there_NT: torch.Tensor) -> torch.Tensor:
    """The heads of the words that are there, (N, T), of which each text has a tree; 0 for other words."""
    heads_NT = torch.zeros(there_NT.shape, dtype=torch.long)
    for row, (scores, there) in enumerate(zip(arcs_NTT.cpu().numpy(), there_NT.cpu(), strict=True)):
        words = there.nonzero().squeeze(1)
        nodes = [0, *(words + 1).tolist()]
        tree = best_tree(scores[words.numpy()][:, nodes])
        heads_NT[row, words] = torch.tensor([nodes[head] for head in tree], dtype=torch.long)
    return heads_NT.to(arcs_NTT.device)


class ParseReader(TagReader):
    """A text, or a list of words, that is read to its end; the answer is a list of words with heads and relations."""

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """See :class:`Reader`."""
        if encoder.format_version == 1:
            raise ValueError(
                f"Task '{task['name']}': words have heads in models of format 2, and the model is of format 1. Set "
                "model.config.format_version = 2 and save it."
            )
        return super().read(task, row, encoder)

    def stock_example(self, task: Row, tokenizer: Open) -> None:
        """None: no stock model parses."""

    def stock_note(self, task: Row) -> None:
        """None: no stock model parses."""

    def answer(self, task: Row, logits: torch.Tensor, rest: Open, model: Open, tokenizer: Open) -> Open:  # noqa: ARG002
        """For every word its number, that of its head, the relation, and the probability of both."""
        text, units, places, *_ = rest
        length = logits.shape[-2]
        flat = [window * length + token if token != NO_TOKEN else NO_TOKEN for window, token in places]
        found = model.heads[task["name"]].parsed(logits.unsqueeze(0), torch.tensor([flat], dtype=torch.long))
        answers = []
        for number, ((start, end), (head, relation, score)) in enumerate(zip(units, found[0].tolist(), strict=True), 1):
            if head >= 0:
                told = {"id": number, "word": text[start:end], "head": int(head)}
                relation = task["label_names"][int(relation)]
                answers.append({**told, "deprel": relation, "score": score, "start": start, "end": end})
        return answers
