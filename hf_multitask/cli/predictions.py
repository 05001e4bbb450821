"""``evaluate --save_predictions FILE``: a line for every row and task, with the answer beside the label of the data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset
from transformers.utils import logging

from ..modeling import MultiTaskPipeline
from ..modeling.fitted import thresholds_of
from ..modeling.kinds import reader_of
from ..tasks import Task
from ..tasks.label_sets import split
from ..tasks.labels import leaf
from ..training import MultiTaskTrainer
from .saved import processor_of
from .splits import Splits

logger = logging.get_logger(__name__)

_WINDOW = 2048  # rows that are answered and written together
_HALF = 0.5  # above which a label belongs to a set that has no thresholds
_ANSWERS = ("label", "answer", "index", "generated_text", "text")  # keys of an answer that hold what the gold is


def check_file(path: Path) -> None:
    """Check that a file can be written.

    Raises:
        ValueError: it is a folder, or its folder cannot be written to.
    """
    if path.is_dir():
        raise ValueError(f"--save_predictions names the folder '{path}'. Set a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ValueError(f"--save_predictions: the folder '{path.parent}' cannot be made ({problem}).") from None
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"--save_predictions: the folder '{path.parent}' cannot be written to. Set another file.")


def save_predictions(path: Path, trainer: MultiTaskTrainer, data: Splits) -> None:
    """Write what the pipeline answers to the rows of an evaluation: ``id``, ``task``, ``gold``, ``answer``, ``score``.

    Args:
        path: of the file, which is replaced once all is written.
        trainer: of the model.
        data: raw rows by dataset name.
    """
    pipeline = MultiTaskPipeline(
        model=trainer.model.eval(),
        batch_size=trainer.args.eval_batch_size,
        **processor_of(trainer.processing_class),
    )
    # The rows that were measured, by their numbers: the caps draw by the number of rows alone.
    numbers = trainer.plan.measured({name: Dataset.from_dict({"row": range(len(rows))}) for name, rows in data.items()})
    written = path.with_name(f"{path.name}.new")
    with written.open("w", encoding="utf-8") as file:
        for name, task in trainer.tasks.items():
            if task.source not in data:
                continue
            if not task.reader.answers_rows:
                logger.warning(f"Task '{name}' is left out of '{path}': it has no answer to the rows of its data.")
                continue
            file.writelines(
                json.dumps(line, ensure_ascii=False, default=str) + "\n"
                for line in _lines(name, task, data[task.source], numbers[task.source]["row"][:], pipeline)
            )
    os.replace(written, path)


def _lines(
    name: str, task: Task, rows: Dataset, numbers: Sequence[int], pipeline: MultiTaskPipeline
) -> Iterator[dict[str, object]]:
    values = {**task.to_dict(), "name": name}
    rows = task.stored(rows).with_format(None)
    targets, target = task.label_columns, task.target_column
    classes = leaf(rows.features[target])[0] if target in rows.column_names else None
    for start in range(0, len(numbers), _WINDOW):
        own = numbers[start : start + _WINDOW]
        window = [rows[number] for number in own]
        reader = reader_of(values)
        asked = [reader.example(values, row) for row in window]
        for number, row, given, answer in zip(own, window, asked, pipeline(asked, tasks=[name]), strict=True):
            told, score = _parts(reader.own_part(values, given, answer[name]), task)
            gold = {column: row.get(column) for column in targets}
            gold[target] = _gold(row.get(target), classes, task)
            yield {
                "id": row["id"] if row.get("id") is not None else number,
                "task": name,
                "gold": gold if len(targets) > 1 else gold[target],
                "answer": told,
                "score": score,
            }


def _gold(cell: object, classes: object, task: Task) -> object:
    """A label in the words of the answers: names of classes, and the names of a set as a list."""
    names: Sequence[str] = getattr(task, "label_names", None) or ()
    separator = getattr(task, "label_separator", None)
    if isinstance(cell, list):
        if task.reads_numbers and names and not any(isinstance(one, str) for one in cell):
            return [name for name, one in zip(names, cell, strict=False) if one]  # a vector
        return [_gold(one, classes, task) for one in cell]
    if separator is not None and cell is not None:
        return split(cell, separator)
    if isinstance(cell, float) and cell.is_integer() and names:
        cell = int(cell)
    if isinstance(cell, int) and isinstance(classes, ClassLabel) and not task.reads_numbers:
        return None if cell < 0 else classes.int2str(cell)
    if isinstance(cell, int) and 0 <= cell < len(names) and not _is_regression(task):
        return names[cell]
    return cell


def _is_regression(task: Task) -> bool:
    return getattr(task, "problem_type", None) == "regression"


def _parts(answer: Any, task: Task) -> tuple[object, object]:  # noqa: ANN401 - what the pipeline answers
    """What is answered, and the score of it where it has one; of a set of labels, the score of every label."""
    if isinstance(answer, list) and answer and all(one.keys() == {"label", "score"} for one in answer):
        scores = {one["label"]: one["score"] for one in answer}
        if _is_regression(task):
            return list(scores.values()), None
        every = thresholds_of(task.to_dict()) is None  # with thresholds, labels that reach them
        return [label for label, score in scores.items() if not every or score > _HALF], scores
    if not isinstance(answer, Mapping):
        return answer, None
    if _is_regression(task) or answer.keys() == {"score"}:
        return answer["score"], None
    key = next((key for key in _ANSWERS if key in answer), None)
    return (dict(answer), None) if key is None else (answer[key], answer.get("score"))
