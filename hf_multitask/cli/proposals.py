"""Tasks that the columns of a dataset may be for, each with the reason: what ``hf-multitask init`` proposes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import datasets

from ..modeling.kinds import KINDS
from ..tasks import (
    AudioClassification,
    AutomaticSpeechRecognition,
    DependencyParsing,
    FillMask,
    MultipleChoice,
    QuestionAnswering,
    SequenceClassification,
    SpanClassification,
    Summarization,
    Task,
    Text2TextGeneration,
    TokenClassification,
    Translation,
    build_task,
)
from ..tasks import labels as lab
from ..tasks.span_labels import spans_of
from .document import Values

SAMPLE = 2000  # rows that are looked at, or up to twice as many
ENCODER, WRITER, LISTENER = "encoder", "encoder-decoder", "speech encoder"  # what a backbone has to be
_MOST_LABELS = 200
_FEW = 20  # different whole numbers, up to which they are classes
_WORDS = 3  # that a text has on average
_SOUND = re.compile(r".+\.(wav|flac|mp3|ogg|m4a|opus)", re.IGNORECASE)
_LIST = re.compile(r"\s*\[\s*(['\"].*['\"]|[\d\s,.-]+)\s*\]\s*", re.DOTALL)
_IDS = re.compile(r"(.*[_ ])?(id|idx|index|guid|uuid|url|key)|unnamed: 0", re.IGNORECASE)
_PAIRS = (
    *(("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("sentence_a", "sentence_b"), ("text1", "text2"), ("query", "passage"), ("query", "document")),
)
_WRITTEN: tuple[tuple[str, str, type[Task]], ...] = (
    *(("document", "summary", Summarization), ("article", "highlights", Summarization)),
    *(("text", "summary", Summarization), ("source", "target", Text2TextGeneration)),
    *(("input", "output", Text2TextGeneration), ("instruction", "response", Text2TextGeneration)),
)


@dataclass
class Proposal:
    """A task for a dataset.

    Args:
        kind: its type.
        arguments: columns, as in a recipe.
        reason: in a clause.
        name: of the task.
        problem: why it cannot be trained as it is; None if it can.
    """

    kind: type[Task]
    arguments: Values
    reason: str
    name: str = ""
    problem: str | None = None

    @property
    def backbone(self) -> str:
        """What kind of backbone it needs."""
        if self.kind in (AutomaticSpeechRecognition, AudioClassification):
            return LISTENER
        return WRITER if KINDS[self.kind.type].head.writes else ENCODER


@dataclass
class Table:
    """Rows of a dataset, and what its columns hold.

    Args:
        rows: of the training split; then some of them.
        used: columns that a task reads as labels.
        texts: columns of texts, the longest first.
    """

    rows: datasets.Dataset
    used: set[str] = field(default_factory=set)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        step = max(1, len(self.rows) // SAMPLE)  # as rows may be sorted by label
        self.rows = self.rows.select(range(0, len(self.rows), step))
        lengths = {column: self._words(column) for column in self.columns if self.is_text(column)}
        self.texts = sorted(lengths, key=lambda column: -lengths[column])

    @property
    def columns(self) -> list[str]:
        """The columns that no task reads as labels."""
        return [column for column in self.rows.column_names if column not in self.used]

    def kind(self, column: str) -> tuple[str, int]:
        """See :func:`hf_multitask.tasks.labels.kind`."""
        return lab.kind(self.rows, column)

    def values(self, column: str) -> list[Any]:
        """The cells of a column that are there."""
        return [value for value in self.rows.with_format(None)[column] if value is not None]

    def is_text(self, column: str) -> bool:
        """Whether cells are texts of several words, or too many to be labels."""
        if not lab.holds_strings(self.rows, column) or self.kind(column)[1] or _IDS.fullmatch(column):
            return False
        values = self.values(column)
        if not values or self.is_sound(column):
            return False
        return self._words(column) >= _WORDS or (len(set(values)) > _MOST_LABELS and self._words(column) > 1)

    def is_sound(self, column: str) -> bool:
        """Whether cells are recordings, or the files of some."""
        if type(self.rows.features[column]).__name__ == "Audio":
            return True
        values = self.values(column) if lab.holds_strings(self.rows, column) and not self.kind(column)[1] else []
        return bool(values) and all(_SOUND.fullmatch(str(value)) for value in values)

    def _words(self, column: str) -> float:
        values = self.values(column)
        return sum(len(str(value).split()) for value in values) / max(len(values), 1)

    def labels(self) -> Iterable[tuple[str, int, str]]:
        """Columns of labels that are not read yet: name, number of different values, and what they are."""
        for column in self.columns:
            kind, depth = self.kind(column)
            values = self.values(column)
            if column in self.texts or _IDS.fullmatch(column) or self.is_sound(column) or not values:
                continue
            if depth == 0 and kind in ("name", "number"):
                different = len(set(values))
                if kind == "number" and lab.class_names(self.rows, column) is None and not _numbered(values):
                    if different < len(values):
                        yield column, different, "numbers"
                elif 1 < different <= min(_MOST_LABELS, max(2, len(values) // 2)):
                    yield column, different, "labels"
            elif depth == 0 and kind == "float":
                yield column, len(set(values)), "numbers"
            elif depth == 1 and kind == "name":
                different = len({one for cell in values for one in cell})
                if 1 < different <= _MOST_LABELS:
                    yield column, different, "sets of labels"


def _numbered(values: Sequence[int]) -> bool:
    """Whether whole numbers are those of classes: few, or counted from 0 or 1 with hardly a gap."""
    different = {int(value) for value in values}
    counted = min(different) in (0, 1) and len(different) >= 0.8 * max(different) and max(different) <= _MOST_LABELS
    return len(different) <= _FEW or (counted and len(different) <= len(values) // 2)


def proposals(rows: datasets.Dataset) -> tuple[list[Proposal], list[str]]:
    """The tasks that a dataset may be for, and the columns that none of them reads.

    Args:
        rows: of its training split.
    """
    table = Table(rows)
    found: list[Proposal] = []
    for rule in (_questions, _choices, _sound, _written):  # whose rows are for one purpose
        found = found or rule(table)
    if not found:
        found = [one for rule in (_tags, _spans, _classes) for one in rule(table)] or _masks(table)
    for one in found:
        one.problem = _problem(one, table.rows)
    read = {column for one in found for column in one.arguments.values() if isinstance(column, str)}
    return found, [column for column in rows.column_names if column not in read]


def _problem(proposal: Proposal, rows: datasets.Dataset) -> str | None:
    """Why a task does not take the rows, in a sentence."""
    for column in proposal.arguments.values():
        cell = _list_as_text(rows, column) if column in rows.column_names else None
        if cell is not None:
            return f"'{column}' has lists that are written as text, such as {cell}. Give a file of JSON lines (.jsonl)."
    try:
        task = build_task("task", {"type": proposal.kind.type, **proposal.arguments})
        task.check_columns(rows, "train")
        task.resolve(rows, [])
    except ValueError as problem:
        return " ".join(str(problem).split())
    if proposal.arguments.get("problem_type") == "regression":
        column = proposal.arguments["label_column"]
        strange = next((one for one in rows[column] if one is not None and not math.isfinite(one)), None)
        if strange is not None:
            return f"'{column}' has numbers that are not finite, such as {strange}. Fix or remove these rows."
    return None


def _list_as_text(rows: datasets.Dataset, column: str) -> str | None:
    """The first cell of a column of which all are lists in text, as tables hold them; None of other columns."""
    if lab.kind(rows, column) != ("name", 0):
        return None
    cells = [str(cell) for cell in rows.with_format(None)[column] if cell is not None]
    return cells[0] if cells and all(map(_LIST.fullmatch, cells)) else None


def _tags(table: Table) -> list[Proposal]:
    """Lists of words beside lists of as many tags."""
    lists = [name for name in table.columns if table.kind(name)[1] == 1 and table.kind(name)[0] in ("name", "number")]
    words = [name for name in lists if lab.holds_strings(table.rows, name)]
    for column in sorted(words, key=lambda name: name not in ("tokens", "words")):
        lengths = list(map(len, table.rows[column]))
        beside = [
            name
            for name in lists
            if name != column and [len(cell) if cell is not None else -1 for cell in table.rows[name]] == lengths
        ]
        if not beside or max(lengths) < _WORDS:
            continue
        table.texts.insert(0, column)
        table.used.update(beside)
        tree = _tree(column, beside)
        found = [] if tree is None else [tree]
        for name in beside:
            in_tree = tree is not None and name in tree.arguments.values()
            if in_tree or len({tag for cell in table.rows[name] for tag in cell}) > _MOST_LABELS:
                continue
            found.append(
                Proposal(
                    TokenClassification,
                    {"tokens_column": column, "tags_column": name},
                    f"'{name}' has as many tags as '{column}' has words",
                )
            )
        return found
    return []


def _tree(tokens: str, lists: Sequence[str]) -> Proposal | None:
    """The columns of a treebank, if they are there."""
    heads = next((name for name in ("head", "heads") if name in lists), None)
    relations = next((name for name in ("deprel", "deprels", "deps") if name in lists), None)
    if heads is None or relations is None:
        return None
    return Proposal(
        DependencyParsing,
        {"tokens_column": tokens, "heads_column": heads, "deprels_column": relations},
        f"'{heads}' has the place of the head of every word",
    )


def _spans(table: Table) -> list[Proposal]:
    found = []
    for column in table.columns:
        try:
            by_row = [sorted(spans_of(cell) or []) for cell in table.values(column)]
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if any(by_row) and table.texts and table.kind(column)[0] not in ("name", "number", "float"):
            table.used.add(column)
            over = any(one[1] > other[0] for spans in by_row for one, other in pairwise(spans))
            found.append(
                Proposal(
                    SpanClassification if over else TokenClassification,
                    {"text_column": table.texts[0], "spans_column": column},
                    f"'{column}' has labeled spans of '{table.texts[0]}'" + (", some of which overlap" if over else ""),
                )
            )
    return found


def _questions(table: Table) -> list[Proposal]:
    given = {"question_column": "question", "context_column": "context", "answers_column": "answers"}
    if not set(given.values()) <= {*table.columns}:
        return []
    table.used.update(given.values())
    return [Proposal(QuestionAnswering, given, "the columns are those of SQuAD")]


def _choices(table: Table) -> list[Proposal]:
    for choices in ("choices", "endings", "options"):
        if choices in table.columns and table.kind(choices) == ("name", 1) and "label" in table.columns:
            question = next((name for name in ("question", *table.texts) if name in table.columns), None)
            if question is not None:
                table.used.update((choices, "label"))
                arguments = {"question_column": question, "choices_column": choices, "label_column": "label"}
                return [Proposal(MultipleChoice, arguments, f"'label' is one of '{choices}'")]
    return []


def _sound(table: Table) -> list[Proposal]:
    column = next((name for name in table.columns if table.is_sound(name)), None)
    if column is None:
        return []
    found = []
    said = next((name for name in ("text", "sentence", "transcription", "transcript") if name in table.columns), None)
    if said is not None and lab.holds_strings(table.rows, said):
        arguments = {"audio_column": column, "text_column": said}
        found.append(Proposal(AutomaticSpeechRecognition, arguments, f"'{said}' is what '{column}' says"))
        table.used.add(said)
    for name, different, what in list(table.labels()):
        if what == "labels":
            table.used.add(name)
            arguments = {"audio_column": column, "label_column": name}
            found.append(Proposal(AudioClassification, arguments, f"'{name}' has {different:,} labels of recordings"))
    table.used.update(name for name in table.columns if name not in table.texts)
    return found


def _written(table: Table) -> list[Proposal]:
    for source, target, kind in _WRITTEN:
        if {source, target} <= {*table.texts}:
            table.used.update((source, target))
            arguments = {"source_column": source, "target_column": target}
            return [Proposal(kind, arguments, f"'{target}' is written from '{source}'")]
    languages = [name for name in table.texts if re.fullmatch(r"[a-z]{2}", name)]
    if len(languages) == 2 and not list(table.labels()):
        arguments = {"source_column": languages[0], "target_column": languages[1]}
        return [Proposal(Translation, arguments, "two columns are named for languages")]
    return []


def _classes(table: Table) -> list[Proposal]:
    if not table.texts:
        return []
    pair = next((pair for pair in _PAIRS if {*pair} <= {*table.texts}), None)
    if pair is None and len(table.texts) == 2 and not table.used:
        pair = (table.texts[0], table.texts[1]) if _alike(table) else None
    texts = (
        {"text_column": table.texts[0]}
        if pair is None
        else dict(zip(("text_column", "text_pair_column"), pair, strict=True))
    )
    found = []
    for column, different, what in list(table.labels()):
        reason = (
            f"'{column}' has {different:,} different {what}"
            if what != "sets of labels"
            else (f"'{column}' has sets of {different:,} labels")
        )
        more = {"problem_type": "regression"} if what == "numbers" else {}
        found.append(Proposal(SequenceClassification, {**texts, "label_column": column, **more}, reason))
    table.used.update(str(one.arguments["label_column"]) for one in found)
    return found


def _alike(table: Table) -> bool:
    """Whether two columns of texts are named alike, such as ``title_a`` and ``title_b``."""
    one, other = (re.sub(r"[\W_]*(\d|[ab]|left|right)$", "", name.lower()) for name in table.texts)
    return one == other


def _masks(table: Table) -> list[Proposal]:
    if not table.texts:
        return []
    return [Proposal(FillMask, {"text_column": table.texts[0]}, "there are texts without labels")]


def named(found: Sequence[Proposal], dataset: str, taken: Iterable[str]) -> None:
    """Name tasks for their dataset, and where it has several for what they read."""
    names = set(taken)
    for one in found:
        about = next(
            (
                str(one.arguments[key])
                for key in ("label_column", "tags_column", "spans_column")
                if key in one.arguments
            ),
            one.kind.type,
        )
        name = dataset if len(found) == 1 else f"{dataset}_{about}"
        name = re.sub(r"\W+", "_", name).strip("_") or "task"
        number, one.name = 1, name
        while one.name in names:
            number += 1
            one.name = f"{name}_{number}"
        names.add(one.name)
