"""What a run prints at its end: metrics by split, tasks beside their single-task models, and an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..hub.beside import Beside, beside_in_words, beside_rows
from ..hub.history import in_order
from ..hub.records import Orders, average_of, by_task, of_set, ranked, whole
from ..modeling import MultiTaskPipeline
from ..modeling.inputs import as_text
from ..modeling.kinds import reader_of
from ..modeling.tags import TagReader
from ..training import MultiTaskTrainer
from ..training.report.console import FEW, MANY, table
from .saved import processor_of
from .splits import SPLITS, Splits


def show_metrics(
    measured: Mapping[str, Mapping[str, float]], tasks: Sequence[str], names: Orders | None = None
) -> None:
    """Print a table with a line per task and metric and a column per split; of many tasks, the worst and the best.

    Args:
        measured: the metrics of an evaluation of each split.
        tasks: the names of the model's tasks.
        names: the names of the metrics of each task.
    """
    found = {split: by_task(metrics, tasks, names)[0] for split, metrics in measured.items()}
    if len(tasks) > MANY:
        _, order = ranked(next(iter(found.values()), {}))
        shown = [name for name, _ in (order if len(order) <= 2 * FEW else order[:FEW] + order[-FEW:])]
        print(f"{len(order):,} tasks; the worst and the best {FEW} (all of them: the results in JSON)")
    else:
        shown = list(tasks)
    lines: list[list[str]] = [["task", "metric", *measured]]
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for split, own in found.items():
        for task, values in own.items():
            primary = next((metric for metric in values if metric != "loss"), None)
            for metric, value in values.items() if task in shown else ():
                if whole(metric) not in (metric, primary):
                    continue  # of the metrics of slices, those of the primary one
                rows.setdefault((task, metric), {})[split] = value
    rows[("average", "")] = {split: average_of(metrics) for split, metrics in measured.items()}
    for line, values in rows.items():
        lines.append([*line, *(f"{values[split]:.4f}" if split in values else "-" for split in measured)])
    print(table(lines))


def with_sets(measured: Mapping[str, Mapping[str, float]], trainer: MultiTaskTrainer) -> dict[str, Mapping[str, float]]:
    """The metrics by split, and by further evaluation set as well.

    Args:
        measured: the metrics by split.
        trainer: that has measured them.
    """
    names = [split for split in trainer.evaluator.reports.splits if split not in SPLITS]
    found = {split: dict(metrics) for split, metrics in measured.items()}
    sets = {name: of_set(found.get("validation", {}), name) for name in names}
    every = {**found, **{name: own for name, own in sets.items() if own}}
    return {split: every[split] for split in in_order(every)}


def show_beside(compared: Sequence[Beside], tasks: Sequence[str]) -> None:
    """Print the tasks beside their single-task models, where there are such, and which of them lose."""
    if compared:
        print(f"\n{table(beside_rows(compared))}\n{beside_in_words(compared, tasks)}")


def show_example(trainer: MultiTaskTrainer, data: Mapping[str, Splits]) -> None:
    """Print the answers for a row of the data: the first one of a token classification task, if there is one.

    Of a model that reads texts and recordings, a row of each.
    """
    tokenizer: Any = trainer.processing_class
    pipeline = MultiTaskPipeline(model=trainer.model.eval(), **processor_of(tokenizer))
    tasks = [task for task in trainer.model.config.tasks if (task["dataset"] or task["name"]) in data]
    tasks = [task for task in tasks if reader_of(task).answers_rows]
    for modality in dict.fromkeys(reader_of(task).modality for task in tasks):
        own = [task for task in tasks if reader_of(task).modality == modality]
        task = next((task for task in own if isinstance(reader_of(task), TagReader)), own[0])
        rows = data[task["dataset"] or task["name"]]
        row = reader_of(task).example(task, next(iter(rows["test" if "test" in rows else "train"])))
        text = as_text(row["text"]) if isinstance(reader_of(task), TagReader) else shown_inputs(row)
        print(f"\nExample: {_short(text)}")
        for name, answer in pipeline(row).items():
            print(f"  {name}: {_readable(answer)}")


def shown_inputs(row: Mapping[str, object]) -> str:
    """The inputs of a row in one line."""
    return " / ".join(map(_shown, row.values()))


def _shown(value: object) -> str:
    """A text or several, or the file of a recording."""
    if isinstance(value, Mapping):
        return str(value.get("path") or "a recording")
    if isinstance(value, bytes):
        return "a recording"
    if isinstance(value, list):
        return " | ".join(one["content"] if isinstance(one, Mapping) else one for one in value)
    return as_text(value)


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."


def _readable(answer: object) -> str:
    if isinstance(answer, list):
        shown = ", ".join(map(_readable, answer[:12]))
        return (shown + (", ..." if len(answer) > 12 else "")) or "nothing"
    if isinstance(answer, dict) and "embedding" in answer:
        return f"an embedding with {len(answer['embedding'])} numbers"
    if isinstance(answer, dict) and "generated_text" in answer:
        return _short(_shown(answer["generated_text"]))
    if isinstance(answer, dict) and answer.keys() == {"text"}:
        return _short(answer["text"])
    if not isinstance(answer, dict) or "score" not in answer:  # a task type of the user
        return str(answer)
    for key in ("answer", "choice"):
        if key in answer:
            return f"{answer[key] or 'no answer'} ({answer['score']:.3f})"
    if "label" not in answer and "word" not in answer:
        return f"{answer['score']:.3f}"
    label = next((answer[key] for key in ("entity_group", "entity", "label", "deprel") if answer.get(key)), None)
    return f"{answer['word']} = {label}" if "word" in answer else f"{label} ({answer['score']:.3f})"
