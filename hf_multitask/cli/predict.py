"""``hf-multitask predict MODEL``: what every task says about a text, or about each line of a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..modeling import MultiTaskPipeline
from .jsonl import read_jsonl
from .saved import load_saved

_KEYS = ("text", "text_pair", "question", "context", "choices")


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "predict", help="answers of a saved model", description=(__doc__ or "").replace("``", "")
    )
    parser.add_argument("model", help="folder or Hub id of a multi-task model")
    parser.add_argument("text", nargs="?", help="the text")
    parser.add_argument(
        "--input",
        help="a file instead: "
        "JSONL with 'text' (and 'text_pair'), or 'question' and 'context' or 'choices'; or a text a line",
    )
    parser.add_argument("--tasks", nargs="+", help="names of the tasks to ask (default: all)")
    parser.add_argument("--batch_size", type=int, default=16, help="rows of a forward (default: 16)")


def run(namespace: argparse.Namespace, words: Sequence[str]) -> None:
    """Print one JSON object per text, in the order of the input."""
    if words:
        raise ValueError(f"predict does not take '{words[0]}'. Quote the text if it has several words.")
    if (namespace.text is None) == (namespace.input is None):
        raise ValueError("Give either a text or --input FILE.")
    rows: list[Any] = [namespace.text] if namespace.input is None else list(_read(Path(namespace.input)))
    model, tokenizer = load_saved(namespace.model)
    pipeline = MultiTaskPipeline(model=model.eval(), tokenizer=tokenizer)
    for answer in pipeline((row for row in rows), batch_size=namespace.batch_size, tasks=namespace.tasks):
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")


def _read(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise ValueError(f"There is no file '{path}'. Check --input.")
    if path.suffix != ".jsonl":
        with path.open(encoding="utf-8") as lines:
            yield from (line.rstrip("\n") for line in lines)
        return
    for number, row in read_jsonl(path):
        if not isinstance(row.get("text"), str | list) and not isinstance(row.get("question"), str | list):
            raise ValueError(f"line {number} of '{path}' should be an object with 'text' or 'question'. Mend the line.")
        yield {key: row[key] for key in _KEYS if row.get(key) is not None}
