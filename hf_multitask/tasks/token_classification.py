"""A tag for every word of a text, or for the tokens of running text with labeled spans."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..modeling.heads import IGNORE
from ..modeling.inputs import as_text
from ..modeling.losses import loss_options
from ..modeling.readers import window_stride
from ..modeling.schemes import ARGMAX, scheme_in
from ..modeling.words import joined, split_tag
from . import labels as lab
from .alignment import Aligned, align_spans, align_words
from .base import Task
from .constant import of_classes
from .decoding import check_decoding, impossible
from .encodings import RowEncodings
from .fitting import Calibrated
from .losses import LabelLoss
from .measures import SPANS, TAGS, Classes, measured, table_of_tags
from .registration import register_task
from .span_labels import Span, placed_spans, spans_of
from .tag_pairs import Pairs, details_of_tags, spans_of_pairs, tag_pairs

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from .columns import Cells, Columns, Labels, References, Table

_SPANS = ["f1", "precision", "recall", *SPANS]


@dataclass(kw_only=True)
class TokenClassification(Calibrated, LabelLoss):
    """Classify words: named entities in BIO, parts of speech, slots.

    Words are joined by single spaces and tokenized as running text. The first token of a word has its tag; the other
    tokens have no label.

    With ``text_column`` and ``spans_column``, the rows contain running text and a list of spans, ``{"start", "end",
    "label"}`` in characters; see :func:`hf_multitask.tasks.span_labels.span_of` for other formats. The tokens that
    overlap a span have its tags, whatever the tokenizer considers a word.

    Texts that are longer than ``max_length`` are read in windows that overlap. A token in two windows is used in the
    one where it has the most context. A label without a token, such as that of an empty word, is reported, and counts
    as not found in evaluation.

    Args:
        text_column: column of running text, together with ``spans_column``.
        spans_column: column of the spans.
        tokens_column: column of the words, a list of strings per row.
        tags_column: column of the tags: a list of names, numbers or ClassLabels, one per word; None in a row without
            tags.
        label_names: names of the tags, in the order of their numbers; read from the data if None.
        label_all_tokens: label every token of a word in training, with ``I-`` for the later tokens of a word that
            begins a span; answers and metrics still use the first token.
        unseen_labels: how evaluation treats a tag outside ``label_names``: ``"count_wrong"`` or ``"error"``.
        stride: tokens by which the windows of a long text overlap; a quarter of ``max_length`` if None.
        class_weights, label_smoothing, loss, loss_kwargs: see :class:`hf_multitask.tasks.losses.LabelLoss`.
        scheme: how the tags mark spans: ``"BIO"``, ``"BIOES"``, ``"BILOU"``, ``"IOB1"``, or ``"none"`` if they mark
            none; recognized from the labels if None, but never as IOB1.
        decoding: how the tags of a text are found: ``"argmax"``, the best tag of each word, also if None;
            ``"constrained"``, the best sequence of tags that the scheme allows; ``"crf"``, likewise, with trained
            scores of tags that follow each other, see :class:`LinearChain`.
        calibration: ``"temperature"`` divides logits by a number that is fitted to validation rows, before all
            probabilities; not with ``"crf"``.
        fitted: what was fitted; set by the trainer.
        dataset, weight_column: see :class:`Task`.
        max_length: tokens of a window; see :class:`Task`.
        metrics: see :class:`Task`.

    Example::

        TokenClassification(label_names=["O", "B-PER", "I-PER"], tokens_column="tokens", tags_column="ner_tags")
    """

    type: ClassVar[str] = "token-classification"
    aligns_words: ClassVar[bool] = True
    labels_tokens: ClassVar[bool] = True
    tokens_column: str = "tokens"
    tags_column: str = "ner_tags"
    label_all_tokens: bool = False
    text_column: str | None = None
    spans_column: str | None = None
    stride: int | None = None
    scheme: str | None = None
    decoding: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("stride", 0)
        check_decoding(self)
        if (self.text_column is None) != (self.spans_column is None):
            raise self.error(
                "`text_column` and `spans_column` belong together. Set both, or tokens_column and tags_column."
            )
        if self.spans_column is not None and self.label_names is not None and "O" not in self.label_names:
            raise self.error("`label_names` has no 'O', the tag of the tokens outside of spans. Add it.")
        for name in (self.label_names or []) if self.spans_column is not None else []:
            mark, kind = split_tag(name)
            if mark == "B" and f"I-{kind}" not in (self.label_names or []):
                raise self.error(f"`label_names` has no 'I-{kind}', the tag of the later tokens of a span. Add it.")

    @property
    def target_column(self) -> str:
        """Column of the tags, or of the spans."""
        return self.spans_column or self.tags_column

    @property
    def windows_key(self) -> Hashable:
        """See :class:`Task`."""
        return -1 if self.stride is None else self.stride

    def stride_of(self, limit: int | None) -> int | None:
        """See :class:`Task`."""
        return window_stride(self.to_dict(), limit)

    def resolve(self, train: Dataset | None, others: Sequence[Dataset]) -> Task:
        """See :meth:`Task.resolve`."""
        data = [dataset for dataset in (train, *others) if dataset is not None]
        if self.spans_column is not None:
            return self if self.label_names is not None else replace(self, label_names=self._names_of_spans(data))
        for dataset in data:
            for column, kinds, wants in (
                (self.tokens_column, ("name",), "a list of words per row"),
                (self.tags_column, ("name", "number"), "a list of tags per row"),
            ):
                found, depth = lab.kind(dataset, column)
                if found != "nothing" and (found not in kinds or depth != 1):
                    raise self.error(
                        f"column '{column}' contains {lab.describe(found, depth)}, but {wants} is needed. "
                        "Set another column."
                    )
        return self if self.label_names is not None else self.with_names_of(data)

    def _names_of_spans(self, data: Sequence[Dataset]) -> list[str]:
        kinds: dict[str, None] = {}
        for dataset in data:
            kinds |= dict.fromkeys(self._kinds(dataset))
        if not kinds:
            raise self.error(
                f"column '{self.spans_column}' contains no span with a 'label'. Check it, or set label_names."
            )
        return ["O", *(f"{mark}-{kind}" for kind in kinds for mark in "BI")]

    def _kinds(self, dataset: Dataset) -> list[str]:
        """The labels of the spans of a dataset, sorted; invalid spans are reported later, with their rows."""
        kinds = set()
        for cell in dataset[self.spans_column]:
            try:
                kinds |= {kind for _, _, kind in spans_of(cell) or []}
            except ValueError:
                continue
        return sorted(kinds)

    def unseen(self, dataset: Dataset) -> Cells:
        """See :meth:`Task.unseen`."""
        if self.spans_column is None:
            return super().unseen(dataset)
        kinds = {split_tag(name)[1] for name in self.label_names or []}
        return [f"{mark}-{kind}" for kind in self._kinds(dataset) if kind not in kinds for mark in "BI"]

    def placeholder(self, row: Columns) -> object:
        """See :meth:`Task.placeholder`."""
        return [] if self.spans_column is not None else [(self.label_names or [])[0]] * len(row[self.tokens_column])

    def encode_labels(
        self, rows: Columns, indices: list[int], encoding: RowEncodings, unseen: Cells, split: str
    ) -> Labels:
        """See :meth:`Task.encode_labels`."""
        table = lab.numbering(self.label_names or [], unseen)
        aligned: list[Aligned | None] = []
        for row, target in enumerate(rows[self.target_column]):
            where = f"row {indices[row]} of the {split} data"
            if self.spans_column is not None:
                text = as_text(rows[self.text_column or ""][row])
                spans = self._spans(text, target, table, where)
                scheme = self._scheme or "BIO"
                own = None if spans is None else align_spans(encoding.text(row), text, spans, table, scheme)
                aligned.append(own)
            elif target is None:
                aligned.append(None)
            else:
                words = rows[self.tokens_column][row]
                tags = self._tags(words, target, table, where)
                # A sequence of words is decoded in evaluation, by their first tokens.
                whole = self.label_all_tokens and (encoding.training or self._single)
                later = self._later if whole else None
                aligned.append(align_words(encoding.text(row), joined(words)[1], tags, later))
        encoding.notes[str(self.name)] = aligned
        return [None if one is None else one.labels for one in aligned]

    def more_columns(
        self,
        rows: Columns,  # noqa: ARG002
        labels: Labels,  # noqa: ARG002
        encoding: RowEncodings,
        *,
        training: bool,
    ) -> Columns:
        """See :meth:`Task.more_columns`."""
        aligned = encoding.notes[str(self.name)]
        columns: Columns = {"lost": [0 if one is None else one.lost for one in aligned]}
        names = self.label_names or []
        if not self._single and self._scheme is not None:
            columns["impossible"] = [impossible(one, names, self._scheme) for one in aligned]
        return columns | ({} if training else {"gold": [None if one is None else one.gold for one in aligned]})

    @property
    def _single(self) -> bool:
        """Whether each tag is found by itself."""
        return self.decoding in (None, ARGMAX)

    @property
    def _scheme(self) -> str | None:
        return scheme_in({"scheme": self.scheme, "label_names": self.label_names})

    def _tags(self, words: list[str], tags: Cells, table: Table, where: str) -> list[int]:
        if len(words) != len(tags):
            raise self.error(
                f"{where} has {len(words)} words in '{self.tokens_column}' and {len(tags)} tags in "
                f"'{self.tags_column}'. Use one tag per word."
            )
        for tag in tags:
            if tag not in table:
                raise self.unknown_label(tag, where)
        return [table[tag] for tag in tags]

    @cached_property
    def _later(self) -> dict[int, int]:
        """By tag, the tag of the later tokens of a word: ``I-`` for ``B-``."""
        names = self.label_names or []
        later = {name: f"I-{split_tag(name)[1]}" if split_tag(name)[0] == "B" else name for name in names}
        return {names.index(name): names.index(other) for name, other in later.items() if other in names}

    def _spans(self, text: str, cell: object, table: Table, where: str) -> list[Span] | None:
        """The spans of a row in ascending order, without white space at their edges."""
        spans = placed_spans(self, text, cell, where)
        behind = 0
        for start, end, kind in spans or ():
            if f"B-{kind}" not in table:
                raise self.unknown_label(f"B-{kind}", where)
            if start < behind:
                raise self.error(
                    f"{where} has spans that overlap at character {start}. A token has one tag: remove one, or make "
                    "the task one of span-classification."
                )
            behind = max(behind, end)
        return spans

    def collate(self, labels: Labels, length: int, padding_side: str) -> torch.Tensor:
        """Labels (N, L), -100 for tokens without a label."""
        return lab.padded(labels, length, padding_side)

    def constant_loss(
        self,
        labels: References,
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: entropy of the tags."""
        return of_classes([tag for row in labels for tag in row if tag != IGNORE], loss_options(self.to_dict()))

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`."""
        if self.label_names is None:
            return None
        spans = ["f1", "precision", "recall"] if self._scheme is not None else []
        return spans if spans and self.spans_column is not None else [*spans, "accuracy"]

    @property
    def possible_metrics(self) -> Collection[str] | None:
        """See :class:`Task`."""
        if self.label_names is None:
            return [*_SPANS, *TAGS]
        if self._scheme is None:
            return table_of_tags(len(self.label_names))
        return _SPANS if self.spans_column is not None else [*_SPANS, "accuracy"]

    def reduced(self, predictions: torch.Tensor) -> torch.Tensor:
        """See :meth:`Task.reduced`: the best tags, or the logits where these are calibrated."""
        return predictions if self.calibration is not None else predictions.argmax(-1)

    def score(
        self,
        predictions: Sequence[np.ndarray] | np.ndarray,
        labels: np.ndarray,  # noqa: ARG002
        *,
        unseen: Cells,
        references: References,
        loss: float,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,
    ) -> dict[str, float]:
        """Metrics of the answers that the pipeline gives; see :meth:`measure`.

        Args:
            predictions: for every row, the best tags of its labeled tokens, or their logits.
            labels: not used.
            unseen: see :meth:`Task.score`.
            references: for every row, the ``gold`` of :meth:`more_columns`.
            loss: not used.
            tokenizer: the backbone's, whose special tokens are words of running text.
        """
        return self._metrics(self._pairs(predictions, unseen, references, tokenizer))

    def details(
        self,
        predictions: Sequence[np.ndarray] | np.ndarray,
        labels: np.ndarray,  # noqa: ARG002
        *,
        unseen: Cells,
        references: References,
        tokenizer: PreTrainedTokenizerBase,
    ) -> dict[str, Any]:
        """See :class:`Task`: the labels of spans, and the confusions of the tags of words."""
        pairs = self._pairs(predictions, unseen, references, tokenizer)
        return details_of_tags(pairs, self.label_names or [], spans=self._scheme is not None)

    def _pairs(
        self,
        predictions: Sequence[np.ndarray] | np.ndarray,
        unseen: Cells,
        references: References,
        tokenizer: PreTrainedTokenizerBase,
    ) -> Pairs:
        """Predicted and true tags by row; None for a word without a token."""
        return tag_pairs(predictions, references, self.label_names or [], unseen, tokenizer.all_special_tokens)

    def _metrics(self, pairs: Pairs) -> dict[str, float]:
        """Metrics of predicted and true tags by row; None for a word without a token."""
        told, true = ([tag for pair in pairs for tag in pair[side]] for side in (0, 1))
        names = self.metrics or self.metric_names or []
        if self._scheme is None:
            own = self.label_names or []
            known = {tag: number for number, tag in enumerate(dict.fromkeys([*own, *true, None]))}
            numbers = [np.array([known[tag] for tag in tags], dtype=int) for tags in (true, told)]
            return measured(names, table_of_tags(len(own)), Classes(*numbers), self.tell)
        from .metrics import SpanF1

        given = spans_of_pairs(pairs)
        values = SpanF1().compute(predictions=given.told, references=given.true)
        values["accuracy"] = TAGS["accuracy"](Classes(np.array(true, object), np.array(told, object)))
        values |= measured([name for name in names if name in SPANS], SPANS, given, self.tell)
        return {name: values[name] for name in names}

    def measure(self, predictions: np.ndarray, labels: np.ndarray, unseen: Cells) -> dict[str, float]:
        """``f1``, ``precision``, ``recall`` of spans and ``accuracy`` of tags; ``accuracy`` for tags without spans.

        Args:
            predictions: logits (N, L, C), of which the highest counts, whatever the decoding.
            labels: (N, L), -100 for tokens without a label.
            unseen: see :meth:`Task.score`.
        """
        names = self.label_names or []
        known = [*names, *map(str, unseen)]
        best, kept = predictions.argmax(-1), labels != IGNORE
        return self._metrics(
            [
                ([names[tag] for tag in best[row][mask]], [known[tag] for tag in labels[row][mask]])
                for row, mask in enumerate(kept)
            ]
        )


register_task(TokenClassification)
