"""The results of single classes and slices in a model card, and the picture of the confusions between classes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..modeling.description import MANY, as_code, markdown_table
from .heatmap import NUMBERS, draw_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Reports = Mapping[str, Mapping[str, Any]]  # by task, as in eval_report.json
PICTURE_NAME = "confusion_matrices.png"
_CLASSES = 30  # of a matrix that is drawn
_PANELS = 6


def best_split(reports: Mapping[str, Reports]) -> str | None:
    """The split whose classes a card shows: test, or else validation; None of many tasks, which have a file."""
    shown = [split for split in ("test", "validation") if reports.get(split)]
    return shown[0] if shown and len(reports[shown[0]]) <= MANY else None


def tables(reports: Reports, split: str) -> list[str]:
    """Headings and tables of classes and slices.

    Args:
        reports: of a split.
        split: its name.
    """
    parts = []
    classes = [name for name, report in reports.items() if report.get("classes")]
    if classes:
        parts.append(f"### By class, on {split}")
    for name in classes:
        rows = [["label", "precision", "recall", "F1", "support"]]
        for label, own in reports[name]["classes"].items():
            numbers = [_number(own[value]) for value in ("precision", "recall", "f1")]
            rows.append([as_code(label), *numbers, f"{own['support']:,}"])
        parts += [f"{name}:", markdown_table(rows, f"{len(rows) - 1:,} labels" if len(rows) > MANY + 1 else None)]
    sliced = {name: report["slices"] for name, report in reports.items() if report.get("slices")}
    if sliced:
        parts.append(f"### By slice, on {split}")
    for name, columns in sliced.items():
        for column, values in columns.items():
            metrics = list(reports[name]["metrics"])
            rows = [[as_code(column), "rows", *metrics]]
            for value, own in values.items():
                rows.append([as_code(value), f"{own['rows']:,}", *(_number(own["metrics"][one]) for one in metrics)])
            fold = f"{len(rows) - 1:,} values of {column}" if len(rows) > MANY + 1 else None
            parts += [f"{name}:", markdown_table(rows, fold)]
    return parts


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def matrices(reports: Reports) -> dict[str, Mapping[str, Any]]:
    """By task, the confusion matrices that are drawn: of the first few tasks, without those of many classes."""
    found = {name: report["confusion_matrix"] for name, report in reports.items() if "confusion_matrix" in report}
    fitting = [name for name, matrix in found.items() if len(matrix["labels"]) <= _CLASSES]
    return {name: found[name] for name in fitting[:_PANELS]}


def draw_matrices(found: Mapping[str, Mapping[str, Any]], description: str) -> bytes | None:
    """The matrices as a PNG, the same bytes for the same numbers; None without matplotlib (extra ``report``).

    Args:
        found: by task, ``labels``, and ``rows`` of counts.
        description: stored in the file.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    columns = min(len(found), 2)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(5.6 * columns, 5.0 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in places[len(found) :]:
        axes.set_axis_off()
    for axes, (name, matrix) in zip(places, found.items(), strict=False):
        _draw(axes, name, matrix["labels"], matrix["rows"])
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None, "Description": description})
    return stream.getvalue()


def _draw(axes: Axes, name: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    texts = [[f"{count:,}" for count in row] for row in counts] if len(labels) <= NUMBERS else None
    draw_cells(axes, [_short(label).replace("$", r"\$") for label in labels], shares, texts)
    axes.set_title(name.replace("$", r"\$"), loc="left", fontweight="bold")
    axes.set_xlabel("answer")
    axes.set_ylabel("label")


def _short(label: str) -> str:
    line = " ".join(label.split())
    return line if len(line) <= 24 else f"{line[:21]}..."
