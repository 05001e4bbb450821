"""Heat maps: matrices with a row and a column for every task or class, as a picture and as a table of a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Vermilion and blue of Okabe and Ito, suitable for color-blind readers, around white: -1, 0 and 1.
LOW, MIDDLE, HIGH = (213, 94, 0), (255, 255, 255), (0, 114, 178)
NUMBERS = 12  # rows up to which the cells have numbers
_DEEPEST = 0.75  # maximum opacity of a color, with which the text is legible in light and dark mode


def ink(value: float) -> str:
    """The text color that is legible on the color of a value."""
    return "white" if abs(value) > 0.6 else "black"


def draw_cells(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[Sequence[float]] | np.ndarray,
    texts: Sequence[Sequence[str]] | None,
) -> None:
    """Draw a cell for each pair of names.

    Args:
        axes: of a panel.
        names: of rows and columns, K of them.
        values: from -1 to 1, (K, K); NaN for a gray cell without a text.
        texts: in the cells, (K, K); None for none.
    """
    from matplotlib.colors import LinearSegmentedColormap

    values_KK = np.asarray(values, dtype=float)
    palette = np.array([LOW, MIDDLE, HIGH]) / 255
    colors = LinearSegmentedColormap.from_list("cells", palette).with_extremes(bad="#dddddd")
    axes.imshow(np.ma.masked_invalid(values_KK), cmap=colors, vmin=-1, vmax=1)
    for (row, column), value in np.ndenumerate(values_KK):
        if texts is not None and not np.isnan(value):
            text = texts[row][column]
            axes.text(column, row, text, ha="center", va="center", color=ink(value), fontsize="small")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor", fontsize="small")
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


class Cell(NamedTuple):
    """A cell of a table."""

    value: float | None  # from -1 to 1, which colors it; None for no color
    number: str  # as HTML
    below: str = ""  # a smaller line, as HTML
    title: str = ""  # what the pointer shows, as HTML; a cell without one shows its number in large tables too


def heat_table(names: Sequence[str], cell: Callable[[int, int], Cell]) -> str:
    """A table of a page, as HTML; a large one has colors only.

    Args:
        names: of rows and columns.
        cell: by row and column.
    """
    many = len(names) > NUMBERS
    rows = []
    for row, name in enumerate(names):
        cells = []
        for column in range(len(names)):
            value, number, below, title = cell(row, column)
            color = ""
            if value is not None:
                parts = ", ".join(map(str, HIGH if value > 0 else LOW))
                color = f' style="background: rgba({parts}, {_DEEPEST * min(abs(value), 1.0):.3f})"'
            inner = "" if many and title else number + (f"<small>{below}</small>" if below else "")
            told = f' title="{title}"' if title else ""
            cells.append(f"<td{color}{told}>{inner}</td>")
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return (
        f'<div class="wide"><table class="heat{" many" if many else ""}"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
