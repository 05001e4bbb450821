"""Cosines between the gradients of tasks as a heat map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Vermilion and blue of Okabe and Ito, suitable for color-blind readers, around white: opposite, orthogonal, equal.
LOW, MIDDLE, HIGH = (213, 94, 0), (255, 255, 255), (0, 114, 178)


def ink(cosine: float) -> str:
    """The text color that is legible on the color of a cosine."""
    return "white" if abs(cosine) > 0.6 else "black"


def draw_cosines(axes: Axes, cosines: Mapping[tuple[str, str], float], names: Mapping[str, str]) -> None:
    """Draw a cell for each pair; a pair that was never measured is gray.

    Args:
        axes: of a panel.
        cosines: by pair of tasks.
        names: by task, in order, its name in the picture.
    """
    from matplotlib.colors import LinearSegmentedColormap

    tasks = [task for task in names if any(task in pair for pair in cosines)]
    matrix_KK = np.full((len(tasks), len(tasks)), np.nan)
    np.fill_diagonal(matrix_KK, 1.0)
    for (one, other), value in cosines.items():
        row, column = tasks.index(one), tasks.index(other)
        matrix_KK[row, column] = matrix_KK[column, row] = value
    palette = np.array([LOW, MIDDLE, HIGH]) / 255
    colors = LinearSegmentedColormap.from_list("cosines", palette).with_extremes(bad="#dddddd")
    axes.imshow(np.ma.masked_invalid(matrix_KK), cmap=colors, vmin=-1, vmax=1)
    for (row, column), value in np.ndenumerate(matrix_KK):
        if not np.isnan(value):
            axes.text(column, row, f"{value:+.2f}", ha="center", va="center", color=ink(value), fontsize="small")
    places = range(len(tasks))
    axes.set_xticks(places, [names[task] for task in tasks], rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, [names[task] for task in tasks])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
