"""An evaluation as one page for a browser: tables, confusions, slices, calibration and errors of every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .heatmap import Cell, heat_table
from .page import page

Report = Mapping[str, Any]  # of a task, or a part of it
_OPEN = 40  # rows of a table that is shown at once
_MOST = 60  # classes up to which a matrix is shown
_SIZE = 220  # of a reliability diagram


def evaluation_page(
    title: str, facts: Sequence[str], reports: Mapping[str, Report], texts: Mapping[str, Sequence[str]]
) -> str:
    """The page of an evaluation.

    Args:
        title: of the page.
        facts: about the evaluation.
        reports: by task, as in ``eval_report.json``, with the worst answers.
        texts: by task, the inputs of its worst answers.
    """
    body = [f"<h1>{escape(title)}</h1>", f'<p class="dim">{escape(" · ".join(facts))}</p>', _overview(reports)]
    for name, report in reports.items():
        body += ["<section>", *_task(name, report, texts.get(name, ())), "</section>"]
    body.append('<p class="dim">Made by hf_multitask. All numbers: eval_report.json.</p>')
    return page(title, body)


def _overview(reports: Mapping[str, Report]) -> str:
    rows = []
    for name, report in reports.items():
        metric, value = next(iter(report["metrics"].items()), ("none", None))
        rows.append([name, metric, _number(value), f"{report['rows']:,}"])
    return _table(["task", "primary metric", "value", "rows"], rows)


def _task(name: str, report: Report, texts: Sequence[str]) -> list[str]:
    missing = report["missing"]
    parts = [
        f"<h2>{escape(name)}</h2>",
        f'<p class="dim">{escape(report["type"])}, {report["rows"]:,} rows</p>',
        _table(
            ["metric", "value"],
            [["loss", _number(report["loss"])], *([one, _number(value)] for one, value in report["metrics"].items())],
        ),
        *(f'<div class="problem">{escape(one)} is missing: {escape(why)}.</div>' for one, why in missing.items()),
    ]
    if "classes" in report:
        parts += ["<h3>Classes</h3>", _classes(report)]
    if "confusion_matrix" in report:
        parts += _confusions(report["confusion_matrix"])
    if pairs := report.get("most_frequent_confusions"):
        rows = [[true, told, f"{count:,}"] for true, told, count in pairs]
        parts += ["<h3>Most frequent confusions</h3>", _table(["label", "answer", "rows"], rows)]
    if "errors" in report:
        parts += ["<h3>Errors</h3>", _errors(report["errors"])]
    if "calibration" in report:
        parts += _calibration(report["calibration"])
    for column, values in report.get("slices", {}).items():
        parts += [f"<h3>By {escape(column)}</h3>", _slices(values)]
    if report.get("worst"):
        parts += ["<h3>Worst answers</h3>", _worst(report["worst"], texts)]
    return parts


def _classes(report: Report) -> str:
    matrices = report.get("confusion_matrices", {})
    head = ["label", "precision", "recall", "F1", "rows", *(["missed", "wrong"] if matrices else [])]
    rows = []
    for label, own in report["classes"].items():
        row = [label, *(_number(own[name]) for name in ("precision", "recall", "f1")), f"{own['support']:,}"]
        if matrices:
            (_, wrong), (missed, _) = matrices[label]
            row += [f"{missed:,}", f"{wrong:,}"]
        rows.append(row)
    return _table(head, rows)


def _confusions(found: Report) -> list[str]:
    labels, rows = found["labels"], found["rows"]
    title = "<h3>Confusion matrix</h3>"
    if len(labels) > _MOST:
        return [title, f'<p class="dim">It has {len(labels)} classes and is in eval_report.json.</p>']

    def cell(row: int, column: int) -> Cell:
        count, total = rows[row][column], sum(rows[row])
        says = escape(f"{labels[row]}, answered {labels[column]}: {count}")
        return Cell(count / total if total else None, f"{count:,}", title=says)

    return [
        title,
        '<p class="dim">Labels on the left, answers above. The color is the share of the rows with the label.</p>',
        heat_table(labels, cell),
    ]


def _errors(found: Report) -> str:
    shares = list(next(iter(found.values()))["absolute_quantiles"])
    head = ["output", "mean error", *(f"{float(share):.0%} below" if share != "1" else "largest" for share in shares)]
    rows = [
        [name, _number(own["mean"]), *map(_number, own["absolute_quantiles"].values())] for name, own in found.items()
    ]
    return _table(head, rows)


def _calibration(found: Report) -> list[str]:
    """A reliability diagram: the share of right decisions by their confidence, beside the diagonal."""
    bars = []
    for one in found["bins"]:
        if one["rows"]:
            left, width = one["from"] * _SIZE, (one["to"] - one["from"]) * _SIZE
            height = one["right"] * _SIZE
            says = f"{one['rows']:,} decisions, confidence {one['confidence']:.3f}, right {one['right']:.3f}"
            bars.append(
                f'<rect x="{left:.1f}" y="{_SIZE - height:.1f}" width="{width - 1:.1f}" height="{height:.1f}" '
                f'fill="var(--one)"><title>{says}</title></rect>'
            )
    return [
        "<h3>Calibration</h3>",
        f'<p class="dim">Share of right decisions (bars) by their confidence, from 0 to 1. The bars of a '
        f"calibrated model reach the line. Expected calibration error: {found['ece']:.4f}.</p>",
        f'<figure><svg viewBox="0 0 {_SIZE} {_SIZE}" width="{_SIZE}" role="img" aria-label="Reliability diagram">'
        f'<rect width="{_SIZE}" height="{_SIZE}" fill="var(--soft)"/>{"".join(bars)}'
        f'<line x1="0" y1="{_SIZE}" x2="{_SIZE}" y2="0" stroke="var(--two)" stroke-width="2"/></svg></figure>',
    ]


def _slices(values: Mapping[str, Report]) -> str:
    names = list(next(iter(values.values()))["metrics"]) if values else []
    rows = [
        [
            value,
            f"{own['rows']:,}",
            *(_number(own["metrics"][name], own["missing"].get(name)) for name in names),
        ]
        for value, own in values.items()
    ]
    return _table(["value", "rows", *names], rows)


def _worst(worst: Sequence[Report], texts: Sequence[str]) -> str:
    shown = [*texts, *["" for _ in range(len(worst) - len(texts))]]
    rows = [
        [f"{one['row']:,}", _said(one["true"]), _said(one["answer"]), _number(one["score"]), _Words(text)]
        for one, text in zip(worst, shown, strict=True)
    ]
    return _table(["row", "label", "answer", "score", "input"], rows)


class _Words(str):
    """Text in a cell, which may be long."""


def _said(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None, why: str | None = None) -> str:
    if value is None:
        return "-" if why is None else _Words(why)
    return f"{value:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, folded if it is long; it scrolls by itself where the screen is narrow."""
    lines = []
    for first, *cells in rows:
        inner = "".join(f"<td{' class=words' * isinstance(cell, _Words)}>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{inner}</tr>')
    titles = "".join(f'<th scope="col">{escape(one)}</th>' for one in head)
    table = (
        f'<div class="wide"><table class="plain"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
    return table if len(rows) <= _OPEN else f"<details><summary>{len(rows):,} rows</summary>{table}</details>"
