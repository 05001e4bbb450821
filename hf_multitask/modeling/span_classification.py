"""Labels of spans that may nest and overlap: every span up to a width has a score for each label.

Legend: N rows of one task, L tokens, D hidden, H units of the hidden layer, W tokens of the longest span, C labels, S
entries of the labels of a row, M of all rows.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

from .aliases import Open, TaskDict, Values
from .heads import Head, at_least_float32, dropout_of
from .inputs import Encoder, Windows, as_text
from .losses import IGNORE
from .native import States
from .readers import Reader, Reading, Row, text_windows
from .words import Place, joined, running_words, snapped, token_units

HIDDEN = 150
# The class of an entry of the labels that says that a span is scored, and none of its labels.
SCORED = -1
# The logits of a span that ends behind the text.
NO_SPAN = -30.0
# First and last token of a span, the number of its label, and the score.
Found = tuple[int, int, int, float]


class SpanClassificationHead(Head):
    r"""Scores of all spans of at most W tokens, from the states of their first and last token and their width.

    With the states :math:`h`, the logits of the labels of the span from token i to token j are
    :math:`V \, \mathrm{relu}(A h_i + B h_j + w_{j - i}) + c`, where :math:`w` is a trained vector for each width: that
    of a span of PURE (A Frustratingly Easy Approach for Entity and Relation Extraction, NAACL 2021, section 3.2,
    https://arxiv.org/abs/2010.12812). Memory grows with L times W.

    .. note:: PURE chooses one label or none by a softmax, and has two hidden layers. Here each label is decided by
       itself, so that a span may have several, and there is one hidden layer.

    An item is a span that is scored. Its loss is the sum over labels of the binary cross-entropy. In training, the
    spans that are scored are those with a label, and some of the others, drawn at random for each step and row.
    """

    def build(self, task: TaskDict, config: PreTrainedConfig, pooling: str) -> None:  # noqa: ARG002
        """Make the layers."""
        self.width = int(task["max_span_length"])
        self.dropout = nn.Dropout(dropout_of(config))
        self.first = nn.Linear(config.hidden_size, HIDDEN)
        self.last = nn.Linear(config.hidden_size, HIDDEN, bias=False)
        self.widths = nn.Embedding(self.width, HIDDEN)
        self.classifier = nn.Linear(HIDDEN, self.num_labels)

    def adopt(self, task: TaskDict) -> None:
        """See :meth:`Head.adopt`; the head has as many widths as it was made with."""
        if int(task["max_span_length"]) != self.width:
            raise ValueError(
                f"Task '{task['name']}' has a head for spans of up to {self.width} tokens. Found `max_span_length = "
                f"{task['max_span_length']}`. Keep it, or start from the backbone again."
            )
        super().adopt(task)

    def forward(
        self,
        states: States,
        input_ids: torch.Tensor | None,  # noqa: ARG002
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """States (N, L, D) to logits (N, L, W, C) of the spans from each token to itself and those behind it."""
        hidden_NLD = self.dropout(states.last_hidden_state)
        length = hidden_NLD.shape[1]
        first_NLH, last_NLH = self.first(hidden_NLD), F.pad(self.last(hidden_NLD), (0, 0, 0, self.width - 1))
        mask_NL = torch.ones_like(hidden_NLD[..., 0]) if attention_mask is None else attention_mask
        after_NL = F.pad(mask_NL, (0, self.width - 1))
        logits = []
        for width in range(self.width):
            ends = slice(width, width + length)
            span_NLH = torch.relu(first_NLH + last_NLH[:, ends] + self.widths.weight[width])
            there_NL = (mask_NL != 0) & (after_NL[:, ends] != 0)
            logits.append(self.classifier(span_NLH).masked_fill(~there_NL.unsqueeze(-1), NO_SPAN))
        return torch.stack(logits, 2)

    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """Scored spans of each row, (N, S, 2) to (N,)."""
        return (self._scored(labels)).sum(1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (N, L, W, C) and labels to (N,).

        The labels of a row are S entries ``(place, class)``, padded with -100: the place is that of a span among the L
        times W of its row, and the class :data:`SCORED`, once for each span that is scored, or that of a label.
        """
        place_NS, class_NS = labels.unbind(-1)
        logits_NPC = at_least_float32(logits).flatten(1, 2)
        index_NSC = place_NS.clamp(min=0).unsqueeze(-1).expand(-1, -1, logits_NPC.shape[-1])
        logits_NSC = logits_NPC.gather(1, index_NSC)
        absent_NS = F.softplus(logits_NSC).sum(-1)  # -log(1 - p), from which a label subtracts its logit
        own_NS = logits_NSC.gather(-1, class_NS.clamp(0, self.num_labels - 1).unsqueeze(-1)).squeeze(-1)
        zero = absent_NS.new_zeros(())
        return (
            torch.where(self._scored(labels), absent_NS, zero) - torch.where(self._named(labels), own_NS, zero)
        ).sum(1)

    @staticmethod
    def _scored(labels: torch.Tensor) -> torch.Tensor:
        return labels[..., 1] == SCORED

    def _named(self, labels: torch.Tensor) -> torch.Tensor:
        return (labels[..., 1] >= 0) & (labels[..., 1] < self.num_labels)

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """First and last token, label and score of the spans that are found, (N, P, 4), padded with -100."""
        return by_row(*self.found(logits), len(logits))

    def references(self, labels: torch.Tensor) -> torch.Tensor:
        """First and last token and label of the spans of the labels, (N, P, 3), padded with -100."""
        row_M, entry_M = (labels[..., 1] >= 0).nonzero().unbind(1)
        place_M, class_M = labels[row_M, entry_M].unbind(1)
        first_M = place_M // self.width
        return by_row(row_M, torch.stack([first_M, first_M + place_M % self.width, class_M], 1), len(labels))

    @staticmethod
    def found(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The labels of spans whose probability is above a half: the row of each, (M,), and (M, 4).

        See :meth:`predictions`.
        """
        row_M, first_M, width_M, class_M = (logits > 0).nonzero().unbind(1)
        score_M = at_least_float32(logits[row_M, first_M, width_M, class_M]).sigmoid()
        return row_M, torch.stack([first_M, first_M + width_M, class_M, score_M.float()], 1)

    def described(self) -> Values:
        """See :meth:`Head.described`: the longest span, in tokens."""
        return {"max_span_length": self.width}


def by_row(row_M: torch.Tensor, values_MK: torch.Tensor, rows: int) -> torch.Tensor:
    """Values of rows in rising order as (N, P, K), padded with -100 to the most of a row."""
    counts_N = torch.bincount(row_M, minlength=rows)
    place_M = torch.arange(len(row_M), device=row_M.device) - (counts_N.cumsum(0) - counts_N)[row_M]
    most = int(counts_N.max()) if rows else 0
    whole = values_MK.new_full((rows, most, values_MK.shape[1]), IGNORE)
    whole[row_M, place_M] = values_MK
    return whole


def first_units(text: str, windows: Windows) -> tuple[list[Place], list[int]]:
    """The units of the first window of a text, see :func:`token_units`, and the place of the token of each."""
    start = windows.starts[0]
    units, tokens = token_units(text, windows.offsets[start : start + windows.room])
    return units, [windows.lead + token for token in tokens]


def spans_in(
    text: str, units: Sequence[Place], tokens: Sequence[int], found: Iterable[Found], marks: Sequence[str]
) -> dict[tuple[int, int, int], float]:
    """The scores of spans by first character, the one behind the last, and number of the label.

    A span leaves out punctuation at the edge of its first or last token that is a word of its own.

    Args:
        text: running text.
        units: of its tokens.
        tokens: the place of the token of each unit.
        found: between tokens; those that are none of a unit, such as special ones, do not count.
        marks: see :func:`running_words`.
    """
    number = {token: unit for unit, token in enumerate(tokens)}
    words: list[Place] | None = None
    spans: dict[tuple[int, int, int], float] = {}
    for first, last, kind, score in found:
        if first not in number or last not in number:
            continue
        words = running_words(text, marks) if words is None else words
        key = (*snapped(text, words, units[number[first]], units[number[last]]), kind)
        spans[key] = max(score, spans.get(key, 0.0))
    return spans


class SpanReader(Reader):
    """A text, of which a long one is cut; the answer is a list of spans."""

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """See :class:`Reader`."""
        if not encoder.tokenizer.is_fast:
            raise ValueError(
                f"Task '{task['name']}' needs a fast tokenizer, which gives the position of a token in the text. Give "
                "one, or name other tasks."
            )
        value = row["text"]
        text, words = joined(value) if isinstance(value, list | tuple) and as_text(value) else (as_text(value), None)
        windows = text_windows(text, encoder, 0)
        self._tell_cut(task, encoder, len(windows) > 1)
        units, tokens = first_units(text, encoder.windows(text))
        return Reading(windows[:1], (text, units, tokens, words, encoder.tokenizer.all_special_tokens))

    def answer(self, task: Row, logits: torch.Tensor, rest: Open, model: Open, tokenizer: Open) -> Open:  # noqa: ARG002
        """As ``token-classification``, aggregated; outer spans come before those inside them."""
        text, units, tokens, words, marks = rest
        found = [
            (int(first), int(last), int(kind), score)
            for first, last, kind, score in model.heads[task["name"]].found(logits.unsqueeze(0))[1].tolist()
        ]
        spans = spans_in(text, units, tokens, found, marks)
        answers: list[Values] = []
        for start, end, kind in sorted(spans, key=lambda span: (span[0], -span[1], span[2])):
            name, score = task["label_names"][kind], spans[start, end, kind]
            answer = {"entity_group": name, "score": score, "word": text[start:end], "start": start, "end": end}
            if words is not None:
                inside = [number for number, (begin, behind) in enumerate(words) if begin < end and behind > start]
                answer["word_indices"] = inside
            answers.append(answer)
        return answers
