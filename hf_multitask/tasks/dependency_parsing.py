"""A head and a relation for every word of a sentence: a dependency tree."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..modeling.heads import IGNORE
from ..modeling.readers import window_stride
from ..modeling.words import NO_TOKEN, first_tokens, joined
from . import labels as lab
from .constant import entropy
from .encodings import RowEncodings
from .labelled import Labelled
from .registration import register_task
from .sentences import NOTHING, heads_of

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from .base import Task
    from .columns import Cells, Columns, Labels, References, Table

_PARTS = 4  # of a word's label: window, place in it, head and relation


@dataclass(kw_only=True)
class DependencyParsing(Labelled):
    """Find the dependency tree of a sentence: the head of every word, and its relation to the head.

    Words are joined by single spaces and tokenized as running text; a word is read at its first token. Texts that are
    longer than ``max_length`` are read in windows that overlap by a quarter of it. A word without a token, such as an
    empty one, is reported, and counts as wrong in evaluation.

    Heads are numbers of words, counted from 1, and 0 for the root, as in CoNLL-U. The heads of a row have to be a tree
    with one root.

    Args:
        tokens_column: column of the words, a list of strings per row.
        heads_column: column of the heads: a list of numbers, also as text, one per word; None in a row without a tree.
        deprels_column: column of the relations: a list of names, numbers or ClassLabels, one per word; None likewise.
        label_names: names of the relations, in the order of their numbers; read from the data if None.
        unseen_labels: how evaluation treats a relation outside ``label_names``: ``"count_wrong"`` or ``"error"``.
        dataset, weight_column: see :class:`Task`.
        max_length: tokens of a window; see :class:`Task`.
        metrics: see :class:`Task`.

    Example::

        DependencyParsing(label_names=["root", "nsubj", "obj"], heads_column="head", deprels_column="deprel")
    """

    type: ClassVar[str] = "dependency-parsing"
    aligns_words: ClassVar[bool] = True
    tokens_column: str = "tokens"
    heads_column: str = "head"
    deprels_column: str = "deprel"

    @property
    def target_column(self) -> str:
        """Column of the relations, which have names."""
        return self.deprels_column

    @property
    def label_columns(self) -> list[str]:
        """See :class:`Task`."""
        return [self.heads_column, self.deprels_column]

    @property
    def windows_key(self) -> Hashable:
        """See :class:`Task`: that of other tasks on words by default."""
        return -1

    def stride_of(self, limit: int | None) -> int | None:
        """See :class:`Task`."""
        return window_stride(self.to_dict(), limit)

    def resolve(self, train: Dataset | None, others: Sequence[Dataset]) -> Task:
        """See :meth:`Task.resolve`."""
        data = [dataset for dataset in (train, *others) if dataset is not None]
        for dataset in data:
            for column, kinds, wants in (
                (self.tokens_column, ("name",), "a list of words per row"),
                (self.heads_column, ("name", "number", "float"), "a list of numbers of words per row"),
                (self.deprels_column, ("name", "number"), "a list of relations per row"),
            ):
                found, depth = lab.kind(dataset, column)
                if found != "nothing" and (found not in kinds or depth != 1):
                    raise self.error(
                        f"column '{column}' contains {lab.describe(found, depth)}, but {wants} is needed. "
                        "Set another column."
                    )
        return self if self.label_names is not None else self.with_names_of(data)

    def placeholder(self, row: Columns) -> object:
        """See :meth:`Task.placeholder`: the first word is the head of all others."""
        count = len(row[self.tokens_column])
        return [0, *[1] * (count - 1)][:count], [(self.label_names or [])[0]] * count

    def encode_labels(
        self, rows: Columns, indices: list[int], encoding: RowEncodings, unseen: Cells, split: str
    ) -> Labels:
        """See :meth:`Task.encode_labels`: for each word the place of its first token, its head and its relation."""
        table = lab.numbering(self.label_names or [], unseen)
        labels: Labels = []
        columns = (rows[name] for name in (self.tokens_column, self.heads_column, self.deprels_column))
        for row, (words, heads, deprels) in enumerate(zip(*columns, strict=True)):
            where = f"row {indices[row]} of the {split} data"
            if heads is None and deprels is None:
                labels.append(None)
                continue
            tree = self._tree(words, heads, deprels, table, where)
            windows = encoding.text(row)
            home = windows.home()
            firsts = first_tokens(windows.offsets, joined(words)[1])
            places = [home[token] if token >= 0 else (0, NO_TOKEN) for token in firsts]
            labels.append([[*place, *arc] for place, arc in zip(places, tree, strict=True)])
        return labels

    def _tree(
        self, words: list[str], heads: Cells | None, deprels: Cells | None, table: Table, where: str
    ) -> list[tuple[int, int]]:
        """The heads and relations of a row.

        Raises:
            ValueError: they are not a tree, or a relation is unknown.
        """
        for column, other, cell in (
            (self.heads_column, self.deprels_column, heads),
            (self.deprels_column, self.heads_column, deprels),
        ):
            if cell is None:
                raise self.error(
                    f"{where} has nothing in column '{column}' and a list in '{other}'. Give both, or neither for a "
                    "row without a tree."
                )
            if len(cell) != len(words):
                raise self.error(
                    f"{where} has {len(words)} words in '{self.tokens_column}' and {len(cell)} entries in '{column}'. "
                    "Use one per word."
                )
        try:
            numbers = heads_of(words, heads or [])
        except ValueError as problem:
            raise self.error(f"{where}, column '{self.heads_column}': {problem} Fix the row.") from None
        for number, deprel in enumerate(deprels or [], 1):
            if deprel in NOTHING:
                raise self.error(
                    f"{where}, column '{self.deprels_column}': word {number} ({words[number - 1]!r}) has no relation. "
                    "Fix the row."
                )
            if deprel not in table:
                raise self.unknown_label(deprel, where)
        return [(head, table[deprel]) for head, deprel in zip(numbers, deprels or [], strict=True)]

    def more_columns(
        self,
        rows: Columns,  # noqa: ARG002
        labels: Labels,
        encoding: RowEncodings,  # noqa: ARG002
        *,
        training: bool,  # noqa: ARG002
    ) -> Columns:
        """See :meth:`Task.more_columns`."""
        return {"lost": [sum(place == NO_TOKEN for _, place, *_ in words or []) for words in labels]}

    def class_numbers(self, labels: pa.ChunkedArray) -> np.ndarray:
        """See :meth:`Task.class_numbers`: the relations."""
        return super().class_numbers(labels).reshape(-1, _PARTS)[:, -1]

    def collate(self, labels: Labels, length: int, padding_side: str) -> torch.Tensor:  # noqa: ARG002
        """For each word its place among the tokens of all windows, head and relation: (N, T, 3), padded with -100."""
        import torch

        most = max(1, *map(len, labels))
        padded = torch.full((len(labels), most, _PARTS - 1), IGNORE)
        for row, words in enumerate(labels):
            for number, (window, place, head, deprel) in enumerate(words):
                at = NO_TOKEN if place == NO_TOKEN else window * length + place
                padded[row, number] = torch.tensor([at, head, deprel])
        return padded

    def constant_loss(
        self,
        labels: References,
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: any other word or the root as the head, and the entropy of the relations."""
        of_heads = sum(len(words) * math.log(len(words)) for words in labels if words)
        return of_heads / sum(map(len, labels)) + entropy(relation for words in labels for *_, relation in words)

    @property
    def metric_names(self) -> list[str]:
        """See :class:`Task`."""
        return ["las", "uas"]

    @property
    def possible_metrics(self) -> Collection[str]:
        """See :class:`Task`."""
        return self.metric_names

    def measure(self, predictions: np.ndarray, labels: np.ndarray, unseen: Cells) -> dict[str, float]:
        """``las`` and ``uas``: the share of words with the right head and relation, and with the right head.

        All words count, also punctuation, and relations are compared without their subtypes, which follow a colon: as
        in the script of the CoNLL 2018 shared task (https://universaldependencies.org/conll18/evaluation.html).

        Args:
            predictions: head and relation of each word, (N, T, 3).
            labels: likewise, (N, T, 2), -100 for words that are not there.
            unseen: see :meth:`Task.score`.
        """
        universal = [str(name).partition(":")[0] for name in [*(self.label_names or []), *unseen]]
        number = {name: place for place, name in enumerate(dict.fromkeys(universal))}
        main = np.array([number[name] for name in universal])
        there = labels[..., 0] >= 0
        told, true = predictions[there][:, :2].astype(int), labels[there].astype(int)
        right = told[:, 0] == true[:, 0]
        alike = main[told[:, 1].clip(min=0)] == main[true[:, 1]]
        las, uas = (float(hits.mean()) if len(hits) else 0.0 for hits in (right & alike, right))
        return {"las": las, "uas": uas}


register_task(DependencyParsing)
