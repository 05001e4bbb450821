"""The model card: tasks, use, results, the training run, and versions, with the metadata that the Hub reads."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCardData
from transformers import TrainingArguments

from ..modeling.description import MANY, hub_name, introduction, markdown_table, metadata_of, task_table, usage
from ..version import __version__
from .beside import Beside, beside, beside_in_words, beside_rows
from .classes import PICTURE_NAME, Reports, best_split, draw_matrices, matrices, tables
from .curves import draw
from .edits import Card, UnreadableCard, digest, merge
from .history import Result, curves, gradients, in_order, primary_metrics, results

if TYPE_CHECKING:
    from ..modeling import MultiTaskConfig
    from .edits import Metadata
    from .records import Log

FILE_NAME = "README.md"
CURVES_NAME = "learning_curves.png"
_CURVES_MARK = "learning curves by hf_multitask, "
_MATRICES_MARK = "confusion matrices by hf_multitask, "
_TAGS = ("generated_from_trainer",)

# The arguments of the Trainer that are shown, in addition to those of MultiTaskTrainingArguments.
_SHOWN = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "fp16",
    "seed",
)
_NOT_SHOWN = ("save_best_by_task", "save_adapters_only", "non_finite_patience")

# Metrics with another name on the Hub.
_HUB_METRICS = {
    "pearson": "pearsonr",
    "r2": "r_squared",
    "micro_f1": "f1",
    "rougeL": "rouge",
    "bleu": "sacrebleu",
}


@dataclass(frozen=True)
class Run:
    """What a trainer knows about the model that it saves.

    Args:
        arguments: its training arguments.
        history: its log.
        step: number of optimizer steps; 0 if the model was not trained.
        epoch: passes over the mixture.
        metrics: by task, the names of its metrics in their order; by default the order of the log.
        best: the step whose weights were loaded at the end; None if the last ones are saved.
        plan: the share of each dataset, as text.
        readers: by dataset, the tasks that read it.
        rows: by split, the rows of each dataset, 0 if unknown.
        hub_datasets: by dataset, its name on the Hub, for those that have one.
        processes: number of processes of the training.
        alone: by task, the flat results of a model of the task alone, for those that have one.
        taught: the tasks that learned from a teacher as well.
        reports: by split, the reports of the evaluation of the saved model.
        labeled: by split that was measured, the rows with a label of each task.
    """

    arguments: TrainingArguments
    history: Sequence[Log] = ()
    step: int = 0
    epoch: float = 0.0
    metrics: Mapping[str, Sequence[str]] = field(default_factory=dict)
    best: int | None = None
    plan: str | None = None
    readers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    hub_datasets: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1
    alone: Mapping[str, Log] = field(default_factory=dict)
    taught: Sequence[str] = ()
    reports: Mapping[str, Reports] = field(default_factory=dict)
    labeled: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def beside(self, config: MultiTaskConfig, found: Sequence[Result]) -> list[Beside]:
        """The results beside those of single-task models."""
        sources = {task["name"]: task.get("dataset") or task["name"] for task in config.tasks}
        rows = {
            split: {name: own[source] for name, source in sources.items() if source in own}
            | dict(self.labeled.get(split, {}))
            for split, own in self.rows.items()
        }
        return beside(found, self.alone, rows)


def write_card(
    folder: str | Path,
    config: MultiTaskConfig,
    run: Run,
    *,
    name: str,
    repository: str,
    given: Metadata,
    on_hub: str | None = None,
) -> bool:
    """Write the card of a model and the picture of its curves into a folder; changes made by the user are kept.

    Each file is written under a temporary name and then renamed, so that a full disk leaves the old file intact.

    Args:
        folder: where the model is saved.
        config: the configuration of the model.
        run: what the trainer knows.
        name: title of the card.
        repository: the argument of ``from_pretrained`` in the code of the card.
        given: metadata that the user sets, such as the license.
        on_hub: the card that a push would replace. It is the basis if it was edited and the one in the folder was not.

    Returns:
        Whether the card on the Hub has edits that are not in the written card, because both were edited.

    Raises:
        UnreadableCard: there is a card that cannot be rewritten without losing a part of it.
        OSError: a file could not be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    before = _read(path)
    has_curves = _write_curves(folder / CURVES_NAME, run, config.task_names)
    has_matrices = _write_matrices(folder / PICTURE_NAME, run)
    card = _card(config, run, name, repository, given, has_curves=has_curves, has_matrices=has_matrices)
    text = merge(before, card)
    theirs, fresh = text if on_hub is None else merge(on_hub, card), merge("", card)
    if text == fresh:
        text = theirs
    if text != before:
        _replace(path, text.encode())
    return theirs not in (text, fresh)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()  # with its own line endings
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise UnreadableCard("it is not encoded in UTF-8") from None


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f"_{path.name}.tmp")  # a name that the Trainer does not push
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _write_curves(path: Path, run: Run, tasks: Sequence[str]) -> bool:
    """Draw the curves, unless the existing picture shows the same values: drawing takes longer than everything else.

    Returns:
        Whether there is a picture of this run.
    """
    losses, metrics = curves(run.history, tasks, run.metrics)
    if not losses and not metrics:
        return False
    norms, cosines = gradients(run.history, tasks)
    measured = [norms, sorted(cosines.items())] if norms else []
    mark = digest([losses, metrics, *measured])
    return _write_picture(path, _CURVES_MARK, mark, partial(draw, losses, metrics, norms=norms, cosines=cosines))


def _write_matrices(path: Path, run: Run) -> bool:
    """Draw the confusions, likewise."""
    split = best_split(run.reports)
    found = matrices(run.reports[split]) if split is not None else {}
    return bool(found) and _write_picture(path, _MATRICES_MARK, digest(found), partial(draw_matrices, found))


def _write_picture(path: Path, kind: str, values: str, make: Callable[..., bytes | None]) -> bool:
    mark = kind + values
    there = path.read_bytes() if path.is_file() else b""
    if mark.encode() in there or (there and kind.encode() not in there):  # a picture of the user
        return True
    picture = make(description=mark)
    if picture is not None:
        _replace(path, picture)
    return picture is not None


def _card(
    config: MultiTaskConfig,
    run: Run,
    name: str,
    repository: str,
    given: Metadata,
    *,
    has_curves: bool,
    has_matrices: bool,
) -> Card:
    found = results(run.history, config.task_names, run.metrics, best=run.best)
    primary = primary_metrics(found)
    vague = set()
    if not run.step:
        vague |= {"training", "datasets"} | (set() if found else {"results", "model-index", "metrics"})
    text = _results_text(config, run, found, has_curves=has_curves)
    metadata = metadata_of(config)
    metadata["tags"] += _TAGS
    metadata["datasets"] = sorted(set(run.hub_datasets.values())) or None
    metadata["metrics"] = list(dict.fromkeys(_HUB_METRICS.get(metric, metric) for metric in primary.values())) or None
    measured = ModelCardData(model_name=name, eval_results=_eval_results(config, run, found) or None).to_dict()
    metadata["model-index"] = measured.get("model-index")
    return Card(
        metadata=metadata,
        given=given,
        sections={
            "intro": ("", introduction(config, name)),
            "tasks": ("Tasks", task_table(config, _measured(found, primary))),
            "use": ("Use", usage(config, repository)),
            "results": ("Results", "\n\n".join([text, *_class_texts(run, has_matrices)])),
            "training": ("Training", _training_text(run)),
            "versions": ("Versions", _versions_text()),
        },
        vague=frozenset(vague),
    )


def _eval_results(config: MultiTaskConfig, run: Run, found: Sequence[Result]) -> list[EvalResult]:
    """The results in the format of the Hub.

    The Hub identifies a result by the kind of the task, the dataset and the split. If several tasks of a kind read one
    dataset, the name of the task is used as the configuration of the dataset, to distinguish them.
    """
    sources = {task["name"]: task.get("dataset") or task["name"] for task in config.tasks}
    kinds = {task["name"]: hub_name(task["type"]) or task["type"] for task in config.tasks}
    alike = Counter((kinds[task], source) for task, source in sources.items())
    measured = []
    for result in found:
        task = result.task
        if task is None or result.metric == "loss" or not math.isfinite(result.value):
            continue
        measured.append(
            EvalResult(
                task_type=kinds[task],
                task_name=task,
                dataset_type=run.hub_datasets.get(sources[task], sources[task]),
                dataset_name=sources[task],
                dataset_config=task if alike[kinds[task], sources[task]] > 1 else None,
                dataset_split=result.split,
                metric_type=_HUB_METRICS.get(result.metric, result.metric),
                metric_name=result.metric if result.metric in _HUB_METRICS else None,
                metric_value=round(result.value, 4),
            )
        )
    return measured


def _splits(found: Sequence[Result]) -> list[str]:
    return in_order(result.split for result in found)


def _measured(found: Sequence[Result], primary: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The columns of the task table with the primary metric and its values."""
    if not primary:
        return {}
    columns: dict[str, dict[str, str]] = {"metric": dict(primary)}
    for split in _splits(found):
        columns[split] = {
            str(result.task): f"{result.value:.4f}"
            for result in found
            if result.split == split and primary.get(str(result.task)) == result.metric
        }
    return columns


def _results_text(config: MultiTaskConfig, run: Run, found: Sequence[Result], *, has_curves: bool) -> str:
    parts, tasks = [], config.task_names
    if found:
        splits = _splits(found)
        values: dict[tuple[str, str], dict[str, float]] = {}
        for result in found:
            key = (result.task or "**mean of the primary metrics**", "" if result.task is None else result.metric)
            values.setdefault(key, {})[result.split] = result.value
        rows = [["task", "metric", *splits]]
        for key, of in values.items():
            rows.append([*key, *(f"{of[split]:.4f}" if split in of else "-" for split in splits)])
        steps = {split: sorted({one.step for one in found if one.split == split}) for split in splits}
        places = [f"on {split} at step {' and '.join(map(str, numbers))}" for split, numbers in steps.items()]
        parts += [markdown_table(rows, f"Results of {len(tasks):,} tasks" if len(tasks) > MANY else None)]
        parts += [f"Measured {', '.join(places)}."]
        if compared := run.beside(config, found):
            title = f"{len(compared):,} comparisons" if len(tasks) > MANY else None
            parts += ["### Beside single-task models", markdown_table(beside_rows(compared), title)]
            parts += [beside_in_words(compared, tasks)]
    else:
        parts.append("Not evaluated.")
    if has_curves:
        shown = "Training loss and primary metric of each task by optimizer step"
        if gradients(run.history, tasks)[0]:
            shown += ", norms of the per-task gradients and the cosines between them"
        parts.append(f"![{shown}]({CURVES_NAME})")
    return "\n\n".join(parts)


def _class_texts(run: Run, has_matrices: bool) -> list[str]:
    split = best_split(run.reports)
    if split is None:
        return []
    picture = [f"![Confusion matrices on {split}: labels by row, answers by column]({PICTURE_NAME})"]
    return [*tables(run.reports[split], split), *(picture if has_matrices else [])]


def _training_text(run: Run) -> str:
    if not run.step:
        return "Not trained."
    sentence = f"Trained for {run.step:,} optimizer steps ({run.epoch:.4g} epochs of the mixture)"
    sentence += f" by {run.processes} processes." if run.processes > 1 else "."
    if run.best is not None:
        watched = f"eval_{str(run.arguments.metric_for_best_model).removeprefix('eval_')}"
        sentence += f" The weights are those of step {run.best:,}, with the best `{watched}`."
    if run.taught:
        sentence += f" A single-task model was the teacher of {', '.join(run.taught)}."
    parts = [sentence]
    if run.readers:
        parts += ["### Data", _data_table(run)]
    if run.plan:
        parts += ["### Plan", f"```\n{run.plan}\n```"]
    return "\n\n".join([*parts, "### Hyperparameters", _hyperparameters(run.arguments, taught=bool(run.taught))])


def _data_table(run: Run) -> str:
    splits = [split for split, rows in run.rows.items() if rows]
    table = [["dataset", "tasks", *(f"{split} rows" for split in splits)]]
    for name, tasks in run.readers.items():
        hub = run.hub_datasets.get(name)
        shown = f"[{hub}](https://huggingface.co/datasets/{hub})" if hub else name
        counts = [run.rows[split].get(name) for split in splits]
        numbers = ["-" if count is None else f"{count:,}" if count else "?" for count in counts]
        table.append([shown, ", ".join(tasks), *numbers])
    return markdown_table(table, f"{len(run.readers):,} datasets" if len(run.readers) > MANY else None)


def _hyperparameters(arguments: TrainingArguments, *, taught: bool) -> str:
    hidden = {*_NOT_SHOWN, *(() if taught else ("distillation", "distillation_kwargs"))}
    theirs = {one.name for one in dataclasses.fields(TrainingArguments)}
    own = [one.name for one in dataclasses.fields(arguments) if one.name not in theirs | hidden]
    idle = "num_train_epochs" if arguments.max_steps > 0 else "max_steps"
    lines = []
    for name in (*_SHOWN, *own):
        value = getattr(arguments, name)
        value = getattr(value, "value", value)
        if value is None or value is False or value in ("none", "auto") or name == idle:
            continue
        lines.append(f"- `{name}`: {json.dumps(value) if isinstance(value, Mapping | list) else value}")
    return "\n".join(lines)


def _versions_text() -> str:
    packages = {name: version(name) for name in ("torch", "transformers", "datasets", "tokenizers")}
    found = {"Python": platform.python_version(), "hf_multitask": __version__, **packages}
    return "\n".join(f"- {name} {number}" for name, number in found.items())
