"""Learning curves of all tasks as one picture: losses, validation metrics, gradient norms and cosines."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..modeling.description import MANY
from .heatmap import draw_cells
from .history import Cosines, Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 3  # number of worst and of best tasks that have a color and a name if there are many tasks
# The palette of Okabe and Ito, suitable for color-blind readers; with the dashes it distinguishes more than 20 tasks.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":")
_MARKERS = "os^Dv"
_COLUMN = 10  # names in one column of the legend
_WIDE = 30.0  # ratio of losses from which on they are drawn on a logarithmic axis


def draw(
    losses: Mapping[str, Points],
    metrics: Mapping[str, tuple[str, Points]],
    *,
    norms: Mapping[str, Points] | None = None,
    cosines: Cosines | None = None,
    description: str = "",
) -> bytes | None:
    """The curves as a PNG, the same bytes for the same curves; None without matplotlib (extra ``report``).

    Args:
        losses: by task, mean training losses and their optimizer steps.
        metrics: by task, the name of the primary metric, its values and their steps.
        norms: by task, the norms of its gradient, if they were measured; not drawn for more than 20 tasks.
        cosines: between the gradients at the end.
        description: stored in the file.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    values = {task: points for task, (_, points) in metrics.items()}
    names = sorted({metric for metric, _ in metrics.values()})
    labels = {task: _plain(f"{task} ({metric})") for task, (metric, _) in metrics.items() if len(names) > 1}
    what = _plain(names[0]) if len(names) == 1 else "primary metric of the task"
    drawn_norms = norms if norms and len(norms) <= MANY else {}
    panels = [
        (curves, title, unit, best)
        for curves, title, unit, best in (
            (losses, "Training loss", "loss, mean since the last log", min),
            (values, "Validation", what, max),
            (drawn_norms, "Gradients of the shared parameters", "norm, mean since the last log", max),
        )
        if curves
    ]
    order = list(dict.fromkeys([*losses, *values]))
    wide = 6.4 if len(order) <= _COLUMN or len(order) > MANY else 7.6  # with space for a second column of names
    count = len(panels) + bool(cosines)
    columns = min(count, 2)
    rows = -(-count // columns)
    figure = Figure(figsize=(wide * columns, 4.4 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in places[count:]:
        axes.set_axis_off()
    if cosines:
        places[count - 1].set_title("Cosines of the gradients, last measured", loc="left", fontweight="bold")
        _draw_cosines(places[count - 1], cosines, order)
    for axes, (curves, title, unit, best) in zip(places, panels, strict=False):
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel(unit)
        axes.grid(True, color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        shown = {task: points for task, points in curves.items() if any(math.isfinite(value) for _, value in points)}
        if len(shown) > MANY:
            _many(axes, shown, labels if curves is values else {}, best)
        else:
            _each(axes, shown, labels if curves is values else {}, order)
        _scale(axes, shown, bounded=curves is values)
        axes.set_xlim(left=0)
        columns = 1 if len(shown) <= _COLUMN or len(shown) > MANY else 2
        axes.legend(frameon=False, fontsize="small", ncols=columns, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None, "Description": description})
    return stream.getvalue()


def _each(axes: Axes, curves: Mapping[str, Points], labels: Mapping[str, str], order: Sequence[str]) -> None:
    """A line for each task, the same in both panels."""
    for task, points in curves.items():
        number = order.index(task)
        _line(axes, points, number, label=labels.get(task, task))


def _line(axes: Axes, points: Points, number: int, *, label: str, zorder: int = 2) -> None:
    steps, values = zip(*points, strict=True)
    round_number = number // len(_COLOURS)
    sparse = len(points) <= 25
    axes.plot(
        steps,
        values,
        color=_COLOURS[number % len(_COLOURS)],
        linestyle=_DASHES[round_number % len(_DASHES)],
        marker=_MARKERS[(number + round_number) % len(_MARKERS)] if sparse else None,
        markersize=4,
        linewidth=1.6,
        label=label,
        zorder=zorder,
    )


def _many(axes: Axes, curves: Mapping[str, Points], labels: Mapping[str, str], best: object) -> None:
    """All tasks in gray, their mean, and the worst and best at the end with their names."""
    for points in curves.values():
        axes.plot(*zip(*points, strict=True), color="#bbbbbb", linewidth=0.6, alpha=0.6, zorder=1)
    by_step: dict[int, list[float]] = {}
    for points in curves.values():
        for step, value in points:
            if math.isfinite(value):
                by_step.setdefault(step, []).append(value)
    mean = [(step, sum(values) / len(values)) for step, values in sorted(by_step.items())]
    axes.plot(*zip(*mean, strict=True), color="black", linewidth=2.4, label=f"mean of {len(curves):,} tasks", zorder=3)
    ends = sorted(curves, key=lambda task: _last(curves[task]), reverse=best is max)
    for place, task in enumerate([*ends[:FEW], *ends[-FEW:]]):
        where, number = ("best", place) if place < FEW else ("worst", place + len(_COLOURS))  # dashed
        _line(axes, curves[task], number, label=f"{where}: {labels.get(task, task)}", zorder=2)


def _draw_cosines(axes: Axes, cosines: Cosines, order: Sequence[str]) -> None:
    """A cell for each pair of tasks; a pair that was never measured is gray."""
    tasks = [task for task in order if any(task in pair for pair in cosines)]
    values_KK = np.full((len(tasks), len(tasks)), np.nan)
    np.fill_diagonal(values_KK, 1.0)
    for (one, other), value in cosines.items():
        row, column = tasks.index(one), tasks.index(other)
        values_KK[row, column] = values_KK[column, row] = value
    draw_cells(axes, list(map(_plain, tasks)), values_KK, [[f"{value:+.2f}" for value in row] for row in values_KK])


def _plain(text: str) -> str:
    """A text without math mode."""
    return text.replace("$", r"\$")


def _last(points: Points) -> float:
    return next(value for _, value in reversed(points) if math.isfinite(value))


def _scale(axes: Axes, curves: Mapping[str, Points], *, bounded: bool) -> None:
    """Use a range of 0 to 1 for metrics within it, and a logarithmic axis for losses with a large ratio."""
    values = [value for points in curves.values() for _, value in points if math.isfinite(value)]
    if bounded and values and min(values) >= 0 and max(values) <= 1:
        axes.set_ylim(-0.02, 1.02)
    elif not bounded and values and min(values) > 0 and max(values) > _WIDE * min(values):
        axes.set_yscale("log")
