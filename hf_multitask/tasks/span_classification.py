"""Labeled spans of a text, which may nest and overlap."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from ..modeling.heads import IGNORE
from ..modeling.inputs import as_text
from ..modeling.span_classification import SCORED, first_units, spans_in
from . import labels as lab
from .base import Task
from .constant import of_decisions
from .labelled import Labelled
from .measures import SPANS, Spans, measured
from .registration import register_task
from .span_labels import placed_spans, spans_of

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from .columns import Cells, Columns, Gold, Inputs, Label, Labels, References
    from .encodings import RowEncodings

_METRICS = ["f1", "precision", "recall"]
Key = tuple[int, int, int]  # where a span begins and ends, and the number of its label


class SpanRow(NamedTuple):
    """The labels of a row.

    Args:
        whole: whether all of its spans are scored, as in evaluation.
        tokens: places of the tokens in which spans may begin and end, in rising order.
        spans: first and last token and label of each, (S, 3).
    """

    whole: bool
    tokens: np.ndarray
    spans: np.ndarray

    @classmethod
    def of(cls, stored: Label) -> SpanRow:
        """The labels as :meth:`stored` has made one list of them."""
        values = np.asarray(stored, dtype=np.int64)
        behind = 2 + values[1]
        return cls(bool(values[0]), values[2:behind], values[behind:].reshape(-1, 3))

    def stored(self) -> list[int]:
        """One list, which is never empty: a column whose first rows are empty lists has no type."""
        return [int(self.whole), len(self.tokens), *self.tokens.tolist(), *self.spans.reshape(-1).tolist()]

    def candidates(self, width: int) -> np.ndarray:
        """The places of all spans of at most ``width`` tokens, ``first * width + last - first``, in rising order."""
        first = np.arange(len(self.tokens))[:, None].repeat(width, 1)
        last = first + np.arange(width)
        there = last < len(self.tokens)
        begin, length = self.tokens[first[there]], self.tokens[last[there]] - self.tokens[first[there]]
        return (begin * width + length)[length < width]

    def places(self, width: int) -> np.ndarray:
        """The places of the labeled spans, see :meth:`candidates`."""
        return self.spans[:, 0] * width + self.spans[:, 1] - self.spans[:, 0]


@dataclass(kw_only=True)
class SpanClassification(Labelled):
    """Find and classify spans of a text that may nest and overlap, and have several labels each.

    The rows contain running text and a list of spans, ``{"start", "end", "label"}`` in characters; see
    :func:`hf_multitask.tasks.span_labels.span_of` for other formats. A span reaches from the first to the last token
    that overlaps it, whatever the tokenizer considers a word. Every span of at most ``max_span_length`` tokens is
    scored, see :class:`SpanClassificationHead`.

    Spans that are longer, that are cut off together with the end of a long text, or that have no token are reported
    with their number, and count as not found in evaluation.

    Args:
        text_column: column of running text, or of lists of words, which are joined by single spaces.
        spans_column: column of the spans; None in a row without labels, an empty list in one without spans.
        label_names: names of the labels, in the order of their numbers; read from the data if None.
        max_span_length: tokens of the longest span that is scored and can be answered.
        negative_spans: spans without a label that are scored per row in an optimizer step, drawn again in each; all of
            them if None. The default is that of SpERT (Span-based Joint Entity and Relation Extraction with Transformer
            Pre-training, ECAI 2020, section 4.2, https://arxiv.org/abs/1909.07755).
        unseen_labels: how evaluation treats a label outside ``label_names``: ``"count_wrong"`` or ``"error"``.
        dataset, max_length, weight_column, metrics: see :class:`Task`.

    Example::

        SpanClassification(label_names=["ORG", "GPE"], text_column="text", spans_column="spans")
    """

    type: ClassVar[str] = "span-classification"
    aligns_words: ClassVar[bool] = True
    masks: ClassVar[bool] = True
    unreachable: ClassVar[Mapping[str, str]] = {
        **Task.unreachable,
        "long": "are of spans that are longer than max_span_length",
        "behind": "are of spans that were cut off with the rest of a long text",
    }
    text_column: str = "text"
    spans_column: str = "spans"
    max_span_length: int = 16
    negative_spans: int | None = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("max_span_length", 1, none=False)
        self.check_number("negative_spans", 0)

    @property
    def target_column(self) -> str:
        """Column of the spans."""
        return self.spans_column

    def resolve(self, train: Dataset | None, others: Sequence[Dataset]) -> Task:
        """See :meth:`Task.resolve`."""
        data = [dataset for dataset in (train, *others) if dataset is not None]
        return self if self.label_names is not None else self.named(lab.label_names(list(map(self.labels_of, data))))

    def named(self, names: list[str]) -> SpanClassification:
        """See :meth:`Labelled.named`: one label is enough."""
        if not names:
            raise self.error(
                f"column '{self.spans_column}' contains no span with a 'label'. Check it, or set label_names."
            )
        return replace(self, label_names=names)

    def labels_of(self, dataset: Dataset) -> Cells:
        """The labels of the spans of a dataset, sorted; invalid spans are reported later, with their rows."""
        kinds = set()
        for cell in dataset[self.spans_column]:
            try:
                kinds |= {kind for _, _, kind in spans_of(cell) or []}
            except ValueError:
                continue
        return sorted(kinds)

    def placeholder(self, row: Columns) -> object:  # noqa: ARG002
        """See :meth:`Task.placeholder`."""
        return []

    def encode_labels(
        self, rows: Columns, indices: list[int], encoding: RowEncodings, unseen: Cells, split: str
    ) -> Labels:
        """See :meth:`Task.encode_labels`."""
        table = lab.numbering(self.label_names or [], unseen)
        labels: Labels = []
        notes = encoding.notes[str(self.name)] = []
        for row, (value, cell) in enumerate(zip(rows[self.text_column], rows[self.spans_column], strict=True)):
            where, text = f"row {indices[row]} of the {split} data", as_text(value)
            spans = placed_spans(self, text, cell, where)
            labels.append(None)
            notes.append(None)
            if spans is None:
                continue
            for _, _, kind in spans:
                if kind not in table:
                    raise self.unknown_label(kind, where)
            units, tokens = first_units(text, encoding.text(row))
            lost: Counter[str] = Counter()
            found = set()
            for start, end, kind in spans:
                first, last = bisect_right(units, start, key=lambda unit: unit[1]), bisect_left(units, (end, 0)) - 1
                cut = encoding.is_cut(row) and (not units or start < units[0][0] or end > units[-1][1])
                if cut or first > last:
                    lost["behind" if cut else "lost"] += 1
                elif tokens[last] - tokens[first] >= self.max_span_length:
                    lost["long"] += 1
                else:
                    found.add((tokens[first], tokens[last], table[kind]))
            of_row = SpanRow(not encoding.training, np.array(tokens, int), np.array(sorted(found), int).reshape(-1, 3))
            labels[-1] = of_row.stored()
            gold = [number for start, end, kind in spans for number in (start, end, table[kind])]
            places = [number for unit, token in zip(units, tokens, strict=True) for number in (*unit, token)]
            notes[-1] = lost, {"text": text, "numbers": [len(units), *places, *gold]}
        return labels

    def more_columns(
        self,
        rows: Columns,  # noqa: ARG002
        labels: Labels,  # noqa: ARG002
        encoding: RowEncodings,
        *,
        training: bool,
    ) -> Columns:
        """See :meth:`Task.more_columns`."""
        notes = encoding.notes[str(self.name)]
        columns: Columns = {kind: [0 if note is None else note[0][kind] for note in notes] for kind in self.unreachable}
        return columns | ({} if training else {"gold": [None if note is None else note[1] for note in notes]})

    def class_numbers(self, labels: pa.ChunkedArray) -> np.ndarray:
        """See :meth:`Task.class_numbers`."""
        return np.concatenate([SpanRow.of(label).spans[:, 2] for label in labels.to_pylist()])

    def masked(
        self,
        inputs: Inputs,
        label: Label,
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
        generator: np.random.Generator,
    ) -> tuple[Inputs, Label]:
        """See :meth:`Task.masked`: the entries of the labels of a row, (S, 2), see :class:`SpanClassificationHead`."""
        row, width = SpanRow.of(label), self.max_span_length
        places, every = row.places(width), row.candidates(width)
        scored = every
        if not row.whole and self.negative_spans is not None:
            others = np.setdiff1d(every, places)
            drawn = generator.choice(others, min(self.negative_spans, len(others)), replace=False)
            scored = np.concatenate([np.unique(places), np.sort(drawn)])
        unseen = places[row.spans[:, 2] >= len(self.label_names or [])]
        scored = scored[~np.isin(scored, unseen)]
        entries = np.full((len(scored) + len(places), 2), SCORED)
        entries[:, 0] = np.concatenate([scored, places])
        entries[len(scored) :, 1] = row.spans[:, 2]
        return inputs, entries

    def collate(self, labels: Labels, length: int, padding_side: str) -> torch.Tensor:  # noqa: ARG002
        """Entries (N, S, 2) of :meth:`masked`, padded with -100."""
        import torch

        whole = np.full((len(labels), max(map(len, labels)), 2), IGNORE)
        for row, entries in enumerate(labels):
            whole[row, : len(entries)] = entries
        return torch.from_numpy(whole)

    def constant_loss(
        self,
        labels: References,
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: the entropies of the labels of a scored span, summed."""
        counts, total = Counter[int](), 0
        for label in labels:
            row = SpanRow.of(label)
            places, every = len(np.unique(row.places(self.max_span_length))), len(row.candidates(self.max_span_length))
            total += every if self.negative_spans is None else min(every, places + self.negative_spans)
            counts.update(row.spans[:, 2].tolist())
        return of_decisions(counts.values(), total)

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`."""
        return _METRICS

    @property
    def possible_metrics(self) -> Collection[str] | None:
        """See :class:`Task`."""
        return [*_METRICS, *SPANS]

    def score(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,  # noqa: ARG002
        *,
        unseen: Cells,
        references: References,
        loss: float,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,
    ) -> dict[str, float]:
        """Metrics of the answers that the pipeline gives, in characters; see :meth:`measure`.

        Args:
            predictions: see :meth:`measure`.
            labels: not used.
            unseen: see :meth:`Task.score`.
            references: for every row, the ``gold`` of :meth:`more_columns`.
            loss: not used.
            tokenizer: the backbone's, whose special tokens are words of running text.
        """
        pairs = [
            _told_and_true(found, gold, tokenizer.all_special_tokens)
            for found, gold in zip(predictions, references, strict=True)
        ]
        return self._metrics(pairs, unseen)

    def measure(self, predictions: np.ndarray, labels: np.ndarray, unseen: Cells) -> dict[str, float]:
        """``f1``, ``precision`` and ``recall`` of spans with the same tokens and label.

        Args:
            predictions: first and last token, label and score of the spans found in each row, (N, P, 4), padded with
                -100.
            labels: first and last token and label, (N, S, 3), padded with -100.
            unseen: see :meth:`Task.score`.
        """
        pairs = [(_keys(found), _keys(true)) for found, true in zip(predictions, labels, strict=True)]
        return self._metrics(pairs, unseen)

    def _metrics(self, pairs: Iterable[tuple[set[Key], set[Key]]], unseen: Cells) -> dict[str, float]:
        """Metrics of predicted and true spans by row."""
        from .metrics import SpanF1

        known = [*(self.label_names or []), *map(str, unseen)]
        names = self.metrics or _METRICS
        tags: list[list[list[str]]] = [[], []]
        for pair in pairs:  # a place in a sequence of tags for each span, so that spans may overlap
            every = sorted(pair[0] | pair[1])
            for own, of_side in zip(pair, tags, strict=True):
                of_side.append([f"B-{known[span[2]]}" if span in own else "O" for span in every])
        values = SpanF1().compute(predictions=tags[0], references=tags[1])
        given = Spans(told=tags[0], true=tags[1])
        values |= measured([name for name in names if name in SPANS], SPANS, given, self.tell)
        return {name: values[name] for name in names}


def _keys(spans: np.ndarray) -> set[Key]:
    """The spans of a row without padding and scores."""
    return {(int(first), int(last), int(kind)) for first, last, kind, *_ in spans if first >= 0}


def _told_and_true(found: np.ndarray, gold: Gold, marks: Sequence[str]) -> tuple[set[Key], set[Key]]:
    """Spans of characters, as the pipeline answers them and as they are in the data."""
    count, *numbers = gold["numbers"]
    table = np.array(numbers, dtype=np.int64).reshape(-1, 3)
    units, true = table[:count], table[count:]
    spans = [(int(first), int(last), int(kind), float(score)) for first, last, kind, score in found if first >= 0]
    places = [(start, end) for start, end, _ in units.tolist()]
    told = spans_in(gold["text"], places, units[:, 2].tolist(), spans, marks)
    return set(told), _keys(true)


register_task(SpanClassification)
