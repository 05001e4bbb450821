"""``evaluate --report DIR``: a page of an evaluation, with the wrong answers beside their inputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..hub.evaluation import evaluation_page
from ..hub.history import split_of
from ..modeling.kinds import reader_of
from ..training import MultiTaskTrainer
from .shown import shown_inputs
from .splits import Splits

PAGE = "index.html"


def check_folder(path: Path) -> None:
    """Check that files can be written into a folder.

    Raises:
        ValueError: it is a file, or cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"--report names the file '{path}'. Set a folder.") from None
    except OSError as problem:
        raise ValueError(f"--report: the folder '{path}' cannot be made ({problem}).") from None
    if not os.access(path, os.W_OK):
        raise ValueError(f"--report: the folder '{path}' cannot be written to. Set another folder.")


def write_report(folder: Path, trainer: MultiTaskTrainer, data: Splits, prefix: str, name: str) -> None:
    """Write ``index.html`` and ``eval_report.json``.

    Args:
        folder: where they are written.
        trainer: after an evaluation.
        data: raw rows by dataset name.
        prefix: of the metrics of the evaluation.
        name: of the model.
    """
    reports = trainer.evaluator.reports
    split = split_of(prefix) or prefix
    found = reports.of(split)
    texts = {task: _inputs(trainer, task, report.get("worst", ()), data) for task, report in found.items()}
    facts = [f"split {split}", f"{len(found):,} tasks"]
    text = evaluation_page(f"Evaluation of {name}", facts, found, texts)
    (folder / PAGE).write_text(text, encoding="utf-8")
    reports.save(folder, prefix)


def _inputs(trainer: MultiTaskTrainer, name: str, worst: Any, data: Splits) -> list[str]:  # noqa: ANN401
    """The inputs of the worst answers of a task as texts."""
    task = trainer.tasks[name]
    if not worst or not task.keeps_rows or not task.reader.answers_rows:
        return []
    values: dict[str, Any] = {**task.to_dict(), "name": name}
    measured: Any = trainer.plan.measured({task.source: data[task.source]})[task.source]
    rows = task.stored(measured).with_format(None)
    return [shown_inputs(reader_of(values).example(values, rows[one["row"]])) for one in worst]
