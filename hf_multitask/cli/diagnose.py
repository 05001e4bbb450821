"""``hf-multitask diagnose RECIPE``: how the tasks of a recipe affect each other, and what each method costs."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import set_seed

from ..hub.diagnosis import Report, diagnosis_page, not_measured_in_words
from ..training.diagnosis.diagnosis import MEASURED_STEPS, PARTS, Diagnosis
from ..training.diagnosis.trainer import DiagnosingTrainer, quiet
from ..training.report.console import table
from ..version import __version__
from .arguments import build_arguments, parse_overrides, typed
from .recipe import read_recipe
from .start import build_model, freeze_unnamed
from .train import load_tokenizer, read_data, splits

FOLDER = "diagnosis"
_WIDE = 8  # maximum number of tasks for which a table of pairs is printed in full
_FEW = 5


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("diagnose", description=(__doc__ or "").replace("``", ""))
    parser.add_argument("recipe", help="a YAML file; any training argument may follow, as in --max_steps 500")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument(
        "--measured_steps",
        type=int,
        default=MEASURED_STEPS,
        help="steps at which gradients are compared (default: %(default)s)",
    )


def prepare(namespace: argparse.Namespace, words: Sequence[str]) -> tuple[Diagnosis, Path]:
    """Prepare everything up to the first step, and return the diagnosis and the folder of the report."""
    recipe = read_recipe(namespace.recipe)
    overrides = parse_overrides(words)
    if "resume_from_checkpoint" in overrides:
        raise ValueError("diagnose does not resume training. Remove --resume_from_checkpoint.")
    if namespace.measured_steps < 2:
        raise ValueError(f"--measured_steps should be 2 or more. Found {namespace.measured_steps}.")
    if recipe.stages:
        print("Key 'stages' of the recipe is ignored: a diagnosis trains all tasks together.")
    changes = quiet(typed(recipe.training) | overrides)
    output_dir = overrides.get("output_dir", recipe.training.get("output_dir"))
    folder = Path(output_dir or "") / FOLDER
    args, _ = build_arguments(
        recipe.training, overrides | changes | ({"output_dir": str(folder)} if output_dir else {})
    )
    data, tasks = read_data(recipe, args)
    freeze_unnamed(recipe, args)
    tokenizer = load_tokenizer(recipe)
    set_seed(args.seed)
    model = build_model(recipe, tasks)
    trainer = DiagnosingTrainer(
        args=args,
        model_init=lambda: copy.deepcopy(model),
        train_dataset=splits(data, "train"),
        eval_dataset=splits(data, "validation") or None,
        processing_class=tokenizer,
    )
    local = Path(recipe.backbone)
    facts = {
        "hf_multitask": __version__,
        "recipe": recipe.path.name,
        "backbone": local.name if local.is_absolute() else recipe.backbone,
    }
    diagnosis = Diagnosis(
        trainer,
        facts,
        parts=namespace.parts,
        steps=overrides.get("max_steps"),
        measured_steps=namespace.measured_steps,
        tell=print,
        save=lambda report: _save(folder, report),
    )
    return diagnosis, folder


def run(namespace: argparse.Namespace, words: Sequence[str]) -> None:
    """Measure, print, and write ``report.json`` and ``report.html`` to ``output_dir/diagnosis``.

    Raises:
        SystemExit: with code 1, if a part failed.
    """
    diagnosis, folder = prepare(namespace, words)
    namespace.prepared = True
    report = diagnosis.run()
    (folder / "report.html").write_text(diagnosis_page(report), encoding="utf-8")
    print(f"\n{describe(report)}\n\nThe report is in {folder / 'report.html'}, its numbers are in report.json.")
    if report["failed"]:
        raise SystemExit(1)


def _save(folder: Path, report: Report) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "report.json.new"
    written.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    written.replace(folder / "report.json")


def describe(report: Report) -> str:
    """The report as tables for the console."""
    parts = []
    if "cosines" in report:
        parts.append(_cosines(report["cosines"], report["tasks"]))
    if "affinity" in report:
        parts.append(_affinity(report["affinity"], report["tasks"]))
    if "groups" in report:
        parts.append(_groups(report["groups"], report["affinity"]["unit"]))
    if "single" in report:
        parts.append(_single(report["single"], report["budget"].get("rows", {})))
    if "prices" in report:
        parts.append(_prices(report["prices"]))
    if report["conclusion"]:
        parts.append(report["conclusion"])
    return "\n\n".join(parts)


def _pairs(
    title: str,
    tasks: Sequence[str],
    cell: Callable[[str, str], str],
    order: Callable[[str, str], float | None],
    *,
    both: bool,
) -> str:
    """A table of all pairs of tasks, or with many tasks of the lowest and highest pairs.

    Args:
        title: of the table.
        tasks: their names.
        cell: returns the text for a pair.
        order: returns the number by which a pair is ranked.
        both: whether the reversed pair is a different pair.
    """
    if len(tasks) <= _WIDE:
        lines = [["", *tasks], *([one, *(cell(one, other) for other in tasks)] for one in tasks)]
        return f"{title}\n{table(lines)}"
    every = [(a, b) for i, a in enumerate(tasks) for j, b in enumerate(tasks) if (i != j if both else i < j)]
    values = {pair: value for pair in every if (value := order(*pair)) is not None}
    ranked = sorted(values, key=values.__getitem__)
    shown = ranked if len(ranked) <= 2 * _FEW else [*ranked[:_FEW], *ranked[-_FEW:]]
    lines = [[f"{one} -> {other}" if both else f"{one}, {other}", cell(one, other)] for one, other in shown]
    return f"{title}; the lowest and highest {_FEW} of {len(ranked):,} pairs\n{table(lines)}"


def _cosines(found: Report, tasks: Sequence[str]) -> str:
    def cell(one: str, other: str) -> str:
        mean, share = found["mean"][one][other], found["conflicts"][one][other]
        if one == other:
            return "-"
        return "?" if mean is None else f"{_signed(mean, 2)} ({share:.0%})"

    title = "Cosine of the per-task gradients, mean (share of measured steps below 0)"
    told = _pairs(title, tasks, cell, lambda one, other: found["mean"][one][other], both=False)
    norms = sorted((norm, name) for name, norm in found["norms"].items() if norm is not None)
    shown = norms if len(norms) <= 2 * _FEW else [*norms[:_FEW], *norms[-_FEW:]]
    return f"{told}\nMean norms: {', '.join(f'{name} {norm:.3g}' for norm, name in shown)}"


def _affinity(found: Report, tasks: Sequence[str]) -> str:
    unit = found["unit"]

    def cell(one: str, other: str) -> str:
        mean, error = found["mean"][one][other], found["standard_error"][one][other]
        return "?" if mean is None else _signed(mean / unit, 2) + ("" if error is None else f" ± {error / unit:.2f}")

    title = (
        "Affinity: relative loss decrease of the task above after a step of the task on the left, in units of "
        f"{unit:.0e} (± standard error)"
    )
    return _pairs(title, tasks, cell, lambda one, other: found["mean"][one][other], both=True)


def _groups(found: Report, unit: float) -> str:
    lines = [["models", "groups", "mean affinity", "gain over one model"]]
    for one in found["by_models"]:
        groups = " ".join("[" + ", ".join(group) + "]" for group in one["groups"])
        gain = "-" if one["models"] == 1 else f"{_signed(one['gain'] / unit, 2)} ± {one['standard_error'] / unit:.2f}"
        lines.append([str(one["models"]), groups, _signed(one["affinity"] / unit, 2), gain])
    return f"The groups with the highest mean affinity, in the same units ({found['search']})\n{table(lines)}"


def _single(found: Report, rows: Mapping[str, int]) -> str:
    lines = [["task", "metric", "rows", "alone", "together", "difference", "noise"]]
    both = {name: (found["alone"].get(name), together) for name, together in found["together"].items()}
    for name, (alone, together) in both.items():
        values = ["-", f"{together:.4f}", "-", ""]
        if alone is not None:
            values = [f"{alone:.4f}", f"{together:.4f}", _signed(together - alone), f"± {found['noise'][name]:.4f}"]
        lines.append([name, found["metric"][name], f"{rows.get(name, 0):,}", *values])
    if all(alone is not None for alone, _ in both.values()):
        alone, together = (sum(pair[side] for pair in both.values()) / len(both) for side in (0, 1))
        lines.append(["average", "", "", f"{alone:.4f}", f"{together:.4f}", _signed(together - alone), ""])
    return f"Single and joint training: the same steps, with the same rows of each task\n{table(lines)}"


def _signed(value: float, digits: int = 4) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # no minus sign before zero


def _prices(found: Report) -> str:
    on_device = any(
        price["peak_mb"] is not None for kind in ("balancing", "aggregation") for price in found[kind].values()
    )
    lines = [["method", "time of a step", "quartiles", "measured memory, MB" if on_device else "stored gradients, MB"]]
    for kind in ("balancing", "aggregation"):
        for name, price in sorted(found[kind].items(), key=lambda entry: entry[1]["time"]):
            memory = price["peak_mb" if on_device else "kept_mb"]
            spread = f"{price['low']:.2f}-{price['high']:.2f}"
            lines.append([f"{kind}: {name}", f"{price['time']:.2f}", spread, f"{memory:,.{int(0 < memory < 10)}f}"])
    told = f"Costs, relative to a plain step of {found['seconds_of_a_plain_step']:.3g} s\n{table(lines)}"
    for words in not_measured_in_words(found["not_measured"]):
        told += f"\nNot measured: {words}"
    return told
