"""A diagnosis as one page for a browser, with colored tables and bars and without external resources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from .heatmap import Cell, heat_table
from .page import page

Report = Mapping[str, Any]  # of a diagnosis, or a part of it


def diagnosis_page(report: Report) -> str:
    """The page for a report of ``hf-multitask diagnose``; parts that are not in the report are left out."""
    budget = report["budget"]
    steps, own = budget["steps"], budget["steps_of_the_recipe"]
    told = f"{steps:,} steps of {budget['rows_of_a_step']} rows"
    if own != steps:
        told += f" (the recipe has {own:,})"
    facts = [str(report["recipe"]), str(report["backbone"]), told, f"seed {report['seed']}", str(report["device"])]
    body = [
        f"<h1>{len(report['tasks'])} tasks on one backbone</h1>",
        f'<p class="dim">{escape(" · ".join(facts))}</p>',
        *_conclusion(report),
    ]
    sections: list[tuple[str, Callable[[Report], list[str]]]] = [
        ("cosines", _cosines),
        ("affinity", _affinity),
        ("groups", _groups),
        ("single", _single),
        ("prices", _prices),
    ]
    for part, section in sections:
        if part in report:
            body += ['<section id="' + part + '">', *section(report), "</section>"]
    seconds = report["seconds"].get("all")
    made = f"Made by hf_multitask {report['hf_multitask']}" + ("" if seconds is None else f" in {_span(seconds)}")
    body.append(f'<p class="dim">{escape(made)}. All numbers: report.json.</p>')
    return page(f"Diagnosis of {report['recipe']}", body)


def _conclusion(report: Report) -> list[str]:
    lines = []
    if report.get("conclusion"):
        lines.append(f'<div class="conclusion"><p>{escape(report["conclusion"])}</p></div>')
    for title, key in (("Failed", "failed"), ("Left out", "left_out")):
        for part, reason in report[key].items():
            lines.append(f'<div class="problem">{title}: {escape(part)} ({escape(reason)})</div>')
    return lines


def _cosines(report: Report) -> list[str]:
    found, tasks = report["cosines"], report["tasks"]

    def cell(one: str, other: str) -> tuple[str, str]:
        share = found["conflicts"][one][other]
        return _signed(found["mean"][one][other]), "" if share is None else f"{share:.0%} &lt; 0"

    norms = [f"{name} {_short(norm)}" for name, norm in found["norms"].items() if norm is not None]
    return [
        "<h2>Do the gradients conflict?</h2>",
        '<p class="dim">The table shows the mean cosine between the gradients of two tasks with respect to the shared '
        f"parameters, on the rows of {len(report['budget']['measured_steps'])} steps spread over the run. Values above "
        "0 (blue) mean that the gradients agree, values below 0 (orange) that they conflict; values without a color "
        "are within two standard errors of 0. The smaller number is the share of the steps with a conflict.</p>",
        _heat(tasks, found, cell, most=1.0, diagonal=False),
        f'<p class="dim">Mean norms of the gradients: {escape(", ".join(norms))}. A gradient with a much larger norm '
        "dominates the others.</p>",
    ]


def _affinity(report: Report) -> list[str]:
    found, tasks = report["affinity"], report["tasks"]

    unit, times = found["unit"], 1 / found["unit"]

    def cell(one: str, other: str) -> tuple[str, str]:
        error = found["standard_error"][one][other]
        return _signed(times * found["mean"][one][other]), "" if error is None else f"± {times * error:.2f}"

    others = [found["mean"][one][other] for one in tasks for other in tasks if one != other]
    most = max((abs(value) for value in others if value is not None), default=0.0)
    return [
        "<h2>Does a step of one task help the others?</h2>",
        '<p class="dim">The table shows the relative loss decrease of the task above after a step along the gradient '
        f"of the task on the left alone (inter-task affinity, TAG), in units of {unit:.0e}, with its standard error "
        "over the measured steps. Blue means that the step helps, orange that it harms; values without a color are "
        "within two standard errors of 0. The diagonal shows the effect of a task on its own loss.</p>",
        _heat(tasks, found, cell, most=most, diagonal=True),
    ]


def _heat(
    tasks: Sequence[str],
    found: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    cell: Callable[[str, str], tuple[str, str]],
    *,
    most: float,
    diagonal: bool,
) -> str:
    """A table whose cells are colored by sign and size, except those within two standard errors of 0.

    Args:
        tasks: rows and columns.
        found: ``mean`` and ``standard_error`` of every pair; None if there is none.
        cell: returns the number of a pair, and a smaller line below it, as HTML.
        most: absolute value with the deepest color.
        diagonal: whether to show the values on the diagonal, without a color.
    """

    def shown(row: int, column: int) -> Cell:
        one, other = tasks[row], tasks[column]
        value, error = found["mean"][one][other], found["standard_error"][one][other]
        if value is None or (one == other and not diagonal):
            return Cell(None, "·" if one == other else "?")
        number, below = cell(one, other)
        colored = one != other and abs(value) > 2 * (error or 0.0)
        title = escape(f"{one}, {other}: ") + f"{number} {below}".strip()
        return Cell(value / most if colored else None, number, below, title)

    return heat_table(tasks, shown)


def _groups(report: Report) -> list[str]:
    found, unit = report["groups"], report["affinity"]["unit"]
    rows = []
    for one in found["by_models"]:
        chips = "".join(f'<span class="chip">{escape(", ".join(group))}</span>' for group in one["groups"])
        gain = "" if one["models"] == 1 else f"{_signed(one['gain'] / unit)} ± {one['standard_error'] / unit:.2f}"
        taken = " ✓" if one["groups"] == found["suggestion"]["groups"] else ""
        rows.append(
            f'<tr><th scope="row">{one["models"]}{taken}</th><td class="words">{chips}</td>'
            f"<td>{_signed(one['affinity'] / unit)}</td><td>{gain}</td></tr>"
        )
    return [
        "<h2>Which tasks should share a model?</h2>",
        '<p class="dim">The table shows, for every number of models, the groups with the highest mean affinity onto '
        f"the tasks, in the same units ({escape(found['search'])}); a task alone counts as 0. The last column is the "
        "gain over one model for all tasks, with its standard error. ✓ marks the suggestion: one model, unless a task "
        "is harmed and a split helps, both by more than two standard errors.</p>",
        '<div class="wide"><table class="plain"><thead><tr><th>models</th><th class="words">groups</th>'
        f"<th>affinity</th><th>gain over one model</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>",
    ]


def _single(report: Report) -> list[str]:
    found, rows = report["single"], report["budget"].get("rows", {})
    bars = []
    for name, together in found["together"].items():
        alone = found["alone"].get(name)
        words = f"{escape(name)}, {escape(found['metric'][name])}"
        difference = "" if alone is None else f" ({together - alone:+.4f} ± {found['noise'][name]:.2g})"
        bars.append(f"<div>{words}</div><div></div><div>{rows.get(name, 0):,} rows</div>")
        if alone is not None:
            bars.append(_bar('<span class="dim">alone</span>', alone, 1.0, f"{alone:.4f}", "two"))
        bars.append(_bar('<span class="dim">together</span>', together, 1.0, f"{together:.4f}{difference}"))
        bars.append('<div class="gap"></div>')
    return [
        "<h2>Is joint training better than single training?</h2>",
        '<p class="dim">The bars show the primary metric on the validation data after training <span class="key two">'
        '</span>each task alone and <span class="key one"></span>all tasks together, with the same initial weights, '
        "the same number of steps, and the same rows of the task in every step; alone, the rows of the other tasks are "
        "left out. The difference is in parentheses, with the standard error of an accuracy on this number of "
        "validation rows. The results are from one seed; another seed may differ by as much.</p>",
        f'<div class="bars">{"".join(bars)}</div>',
    ]


def _prices(report: Report) -> list[str]:
    found = report["prices"]
    kinds = (("balancing", "Balancers"), ("aggregation", "Aggregators"))
    every = [price for kind, _ in kinds for price in found[kind].values()]
    most = max([1.0, *(price["time"] for price in every)])
    measured = any(price["peak_mb"] is not None for price in every)
    what = "the measured memory beyond the plain step" if measured else "the computed memory of the stored gradients"
    lines = [
        "<h2>What does each method cost?</h2>",
        '<p class="dim">The bars show the time of a whole step relative to the plain step, which takes '
        f"{found['seconds_of_a_plain_step']:.3g} s, on the same rows (median, with its quartiles), and {what}.</p>",
    ]
    for kind, title in kinds:
        if not found[kind]:
            continue
        bars = [_bar("plain", 1.0, most, "1.00", "two")]
        for name, price in sorted(found[kind].items(), key=lambda entry: entry[1]["time"]):
            memory = price["peak_mb" if measured else "kept_mb"]
            told = f"{price['time']:.2f} ({price['low']:.2f} to {price['high']:.2f})"
            bars.append(
                _bar(
                    escape(name),
                    price["time"],
                    most,
                    told + (f", {memory:,.{int(0 < memory < 10)}f} MB" if memory else ""),
                )
            )
        lines += [f"<h3>{title}</h3>", f'<div class="bars">{"".join(bars)}</div>']
    reasons = [f"<li>{escape(words)}</li>" for words in not_measured_in_words(found["not_measured"])]
    return [*lines, f'<h3>Not measured</h3><ul class="dim">{"".join(reasons)}</ul>'] if reasons else lines


def not_measured_in_words(reasons: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A line for every reason, with its methods.

    Args:
        reasons: by kind and name of the method.
    """
    methods: dict[tuple[str, str], list[str]] = {}
    for kind, of_kind in reasons.items():
        for name, reason in of_kind.items():
            methods.setdefault((kind, reason), []).append(name)
    return [f"{kind} {', '.join(names)}: {reason}" for (kind, reason), names in methods.items()]


def _bar(words: str, value: float, most: float, told: str, kind: str = "one") -> str:
    width = 100 * min(max(value / most, 0.0), 1.0)
    return (
        f'<div>{words}</div><div class="track"><div class="fill {kind}" style="width: {width:.1f}%"></div></div>'
        f"<div>{told}</div>"
    )


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # no minus sign before zero


def _short(value: float) -> str:
    return f"{value:.3g}"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
