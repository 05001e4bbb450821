"""The exports of annotation tools, as rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers.utils import logging

from ..tasks.span_labels import spans_of
from .jsonl import parse_json, read_jsonl
from .lines import read_lines

logger = logging.get_logger(__name__)

Row = dict[str, Any]
Reader = Callable[[Path, Counter[str]], list[Row]]
_HALF = 0.5  # from which on a category of spaCy applies to a document
_CONLLU = ("tokens", "lemma", "upos", "xpos", "feats", "head", "deprel")  # columns 2 to 8 of a line
_STUDIO_ASIDE = {"annotator", "annotation_id", "created_at", "updated_at", "lead_time"}


class Names(list[str]):
    """Names that apply to a text; if no row has several, its column holds a name or None."""


def load_format(form: str, files: Mapping[str, Sequence[str]]) -> datasets.DatasetDict:
    """The rows of the exports of a tool, by split.

    Raises:
        ValueError: a file is not such an export; the message names file and line.
    """
    aside: Counter[str] = Counter()
    found = {
        split: [row for name in names for row in FORMATS[form](Path(name), aside)] for split, names in files.items()
    }
    for what, count in aside.items():
        logger.warning(f"{count:,} {what} in the exports of {form} are not read.")
    rows = [row for of_split in found.values() for row in of_split]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    single = {
        column
        for column in columns
        if any(isinstance(row.get(column), Names) for row in rows)
        and all(len(row[column]) < 2 for row in rows if isinstance(row.get(column), Names))
    }

    def plain(row: Row) -> Row:
        return {
            column: (row[column][0] if row[column] else None)
            if column in single and isinstance(row.get(column), Names)
            else row.get(column)
            for column in columns
        }

    return datasets.DatasetDict(
        {split: datasets.Dataset.from_list([plain(row) for row in own]) for split, own in found.items()}
    )


def _objects(path: Path) -> Iterator[tuple[str, Row]]:
    """The objects of JSON lines or of a JSON list, with their names in messages.

    Raises:
        ValueError: the file is neither.
    """
    if path.suffix.lower() != ".json":
        for number, row in read_jsonl(path):
            yield f"line {number} of '{path}'", row
        return
    value = parse_json("".join(line for _, line in read_lines(path)), f"'{path}'")
    if not isinstance(value, list):
        raise ValueError(f"'{path}' should be a JSON list, as the tool exports it. Found {type(value).__name__}.")
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise ValueError(f"entry {number} of '{path}' is not a JSON object. Export the file again.")
        yield f"entry {number} of '{path}'", row


def _checked(cell: object, text: object, where: str) -> list[Row]:
    """Spans as mappings with ``start``, ``end`` and ``label``, inside of a text.

    Raises:
        ValueError: one is not a span, or ends behind the text.
    """
    try:
        spans = spans_of(cell) or []
    except ValueError as problem:
        raise ValueError(f"{where}: {problem}") from None
    for start, end, _ in spans:
        if isinstance(text, str) and end > len(text):
            raise ValueError(
                f"{where} has a span from {start} to {end}, and its text has {len(text)} characters. Fix the row."
            )
    return [{"start": start, "end": end, "label": label} for start, end, label in spans]


def read_doccano(path: Path, aside: Counter[str]) -> list[Row]:
    """``text``, and ``spans`` of sequence labeling or ``label`` of classification, whose name may be a text."""
    found: list[tuple[Row, list[Any] | None, str]] = []
    for where, row in _objects(path):
        if not isinstance(row.get("text"), str):
            raise ValueError(f"{where} has no 'text'. Export the project as JSONL.")
        aside["relations"] += len(row.get("relations") or ())
        labels = next((row[key] for key in ("label", "labels", "entities") if row.get(key) is not None), None)
        rest: Row = {key: value for key, value in row.items() if isinstance(value, str | int | float)}
        if labels is not None and not isinstance(labels, list):
            raise ValueError(f"{where} should have a list of labels. Found {labels!r}. Export the project as JSONL.")
        found.append((rest, labels, where))
    aside += Counter()  # without what is zero
    spans = any(not isinstance(one, str) for _, labels, _ in found for one in labels or ())
    result = []
    for rest, labels, where in found:
        if spans:
            rest["spans"] = None if labels is None else _checked(labels, rest["text"], where)
        else:
            rest["label"] = None if labels is None else Names(labels)
        result.append(rest)
    return result


def read_label_studio(path: Path, aside: Counter[str]) -> list[Row]:
    """The data of every task, and a column for each control by its name; of JSON and of JSON-MIN."""
    found: list[tuple[Row, bool]] = []
    spans: set[str] = set()
    for where, entry in _objects(path):
        if isinstance(entry.get("data"), dict):
            row, annotated = _studio_row(entry, where, spans, aside)
        else:
            row = {key: _studio_cell(value, where) for key, value in entry.items() if key not in _STUDIO_ASIDE}
            spans |= {key for key, value in row.items() if isinstance(value, list) and not isinstance(value, Names)}
            annotated = True
        found.append((row, annotated))
    return [{**dict.fromkeys(spans, [] if annotated else None), **row} for row, annotated in found]


def _studio_row(entry: Row, where: str, spans: set[str], aside: Counter[str]) -> tuple[Row, bool]:
    data = entry["data"]
    row: Row = {key: value for key, value in data.items() if isinstance(value, str | int | float)}
    annotations = entry.get("annotations", entry.get("completions"))
    if not isinstance(annotations, list):
        raise ValueError(f"{where} has no 'annotations'. Export the project as JSON or JSON-MIN.")
    given = [one for one in annotations if isinstance(one, dict) and not one.get("was_cancelled")]
    if len(given) > 1:
        aside["further annotations of one task"] += len(given) - 1
    texts = [value for value in data.values() if isinstance(value, str)]
    text = data.get("text") if isinstance(data.get("text"), str) else texts[0] if len(texts) == 1 else None
    for one in given[0].get("result", []) if given else []:
        kind, name, value = one.get("type"), one.get("from_name"), one.get("value")
        if not isinstance(value, dict) or not isinstance(name, str):
            aside[f"results of type {kind}"] += 1
        elif kind == "labels":
            spans.add(name)
            row.setdefault(name, []).extend(_studio_spans(value, text, where))
        elif kind == "choices":
            row.setdefault(name, Names()).extend(value.get("choices") or ())
        elif kind in ("rating", "number"):
            row[name] = value.get(kind)
        elif kind == "textarea":
            row[name] = " ".join(value.get("text") or ())
        else:
            aside[f"results of type {kind}"] += 1
    return row, bool(given)


def _studio_cell(value: object, where: str) -> object:
    """A value of JSON-MIN: spans, choices, or as it is."""
    if isinstance(value, dict) and isinstance(value.get("choices"), list):
        return Names(value["choices"])
    if isinstance(value, list) and value and all(isinstance(one, dict) and "labels" in one for one in value):
        return [span for one in value for span in _studio_spans(one, None, where)]
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return Names(value)
    return value


def _studio_spans(value: Row, text: str | None, where: str) -> list[Row]:
    """The spans of a region, one for each of its labels.

    Label Studio counts in units of UTF-16, of which a character such as an emoji has two.
    """
    start, end, told = value.get("start"), value.get("end"), value.get("text")
    labels = value.get("labels") or ()
    if text is not None and isinstance(start, int) and isinstance(end, int):
        units = text.encode("utf-16-le", "surrogatepass")
        start, end = (len(units[: 2 * place].decode("utf-16-le", "replace")) for place in (start, end))
        if isinstance(told, str) and _letters(text[start:end]) != _letters(told):
            raise ValueError(
                f"{where} has a region from {value['start']} to {value['end']}, where its text is "
                f"{text[start:end]!r}, and not {told!r}. Export the project again."
            )
    return _checked([{"start": start, "end": end, "label": label} for label in labels], text, where)


def _letters(text: str) -> str:
    return re.sub(r"\\n|\s", "", text)


def read_brat(path: Path, aside: Counter[str]) -> list[Row]:
    """A document, a file of text with its annotations beside it: ``id``, ``text``, ``spans``."""
    if path.suffix != ".txt":
        raise ValueError(f"'{path}' should be a file of text, *.txt, whose annotations are beside it, in *.ann.")
    text = "".join(line for _, line in read_lines(path))
    beside = path.with_suffix(".ann")
    spans: list[Row] | None = [] if beside.is_file() else None
    for number, line in read_lines(beside) if spans is not None else ():
        where, line = f"line {number} of '{beside}'", line.rstrip("\r\n")
        if not line.startswith("T"):
            aside["relations, events, attributes and notes"] += bool(line.strip())
            continue
        try:
            _, place, told = line.split("\t")
            label, _, places = place.partition(" ")
            pieces = [tuple(map(int, piece.split(" "))) for piece in places.split(";")]
            starts, ends = zip(*pieces, strict=True)
        except ValueError:
            raise ValueError(
                f"{where} is not a text-bound annotation: its identifier, label with start and end, and text are "
                f"separated by tabs. Found {line!r}. Fix it."
            ) from None
        if len(pieces) > 1:
            aside["spans that are not continuous"] += 1
            continue
        if _letters(text[starts[0] : ends[0]]) != _letters(told):
            raise ValueError(
                f"{where}: the text from {starts[0]} to {ends[0]} is {text[starts[0] : ends[0]]!r}, and not {told!r}. "
                "Fix it, or save both files as UTF-8."
            )
        spans += _checked([[starts[0], ends[0], label]], text, where)  # type: ignore[operator]
    return [{"id": path.stem, "text": text, "spans": spans}]


def read_conllu(path: Path, aside: Counter[str]) -> list[Row]:
    """Sentences: ``id``, ``text``, and the columns of their words as lists of strings.

    Lines of multiword tokens and of empty nodes are not words of the tree, and are left out.
    """
    rows: list[Row] = []
    row: Row = {}

    def close() -> None:
        nonlocal row
        if "tokens" in row:
            rows.append({"id": None, "text": None, **row})
        row = {}

    for number, line in read_lines(path):
        line = line.rstrip("\r\n")
        if not line.strip():
            close()
        elif line.startswith("#"):
            key, _, value = line[1:].partition("=")
            if (name := {"sent_id": "id", "text": "text"}.get(key.strip())) is not None:
                row[name] = value.strip()
        else:
            cells = line.split("\t")
            if len(cells) != 10 or not re.fullmatch(r"\d+([-.]\d+)?", cells[0]):
                raise ValueError(
                    f"line {number} of '{path}' should have ten columns that are separated by tabs, and begin with the "
                    f"number of the word. Found {len(cells)} in {line[:80]!r}. Fix it."
                )
            if not cells[0].isdecimal():
                aside["multiword tokens and empty nodes"] += 1
                continue
            for column, cell in zip(_CONLLU, cells[1:8], strict=True):
                row.setdefault(column, []).append(cell)
    close()
    return rows


def read_spacy(path: Path, aside: Counter[str]) -> list[Row]:  # noqa: ARG001
    """Documents of a ``DocBin``: ``text``, ``tokens``, ``spans`` of entities, ``label`` of categories, and tags."""
    try:
        from spacy.tokens import DocBin
        from spacy.vocab import Vocab
    except ImportError:
        raise ValueError(
            f"'{path}' is read by spaCy, which is not installed. Run pip install 'hf_multitask[annotation]'."
        ) from None
    try:
        documents = list(DocBin().from_disk(path).get_docs(Vocab()))
    except Exception as problem:  # spaCy raises whatever zlib and msgpack raise
        raise ValueError(f"'{path}' is not a DocBin of spaCy ({type(problem).__name__}: {problem}).") from None
    rows = []
    for one in documents:
        words: Row = {"tokens": [token.text for token in one]}
        for column, annotation, read in (
            ("tag", "TAG", lambda token: token.tag_),
            ("upos", "POS", lambda token: token.pos_),
            ("head", "DEP", lambda token: "0" if token.head.i == token.i else str(token.head.i + 1)),
            ("deprel", "DEP", lambda token: token.dep_),
        ):
            words[column] = [read(token) for token in one] if one.has_annotation(annotation) else None
        spans = [{"start": span.start_char, "end": span.end_char, "label": span.label_} for span in one.ents]
        names = Names(name for name, value in one.cats.items() if value >= _HALF)
        labels = {"spans": spans if one.has_annotation("ENT_IOB") else None, "label": names if one.cats else None}
        rows.append({"text": one.text, **words, **labels})
    return rows


FORMATS: dict[str, Reader] = {
    "doccano": read_doccano,
    "label-studio": read_label_studio,
    "brat": read_brat,
    "spacy": read_spacy,
    "conllu": read_conllu,
}
