"""Heat maps as a picture and as a table: colors by value, numbers where there is space."""

import math
import re

import pytest

from hf_multitask.hub.heatmap import HIGH, LOW, NUMBERS, Cell, draw_cells, heat_table


def test_a_table_is_colored_by_value_and_escapes_names():
    cells = {
        (0, 0): Cell(None, "?"),
        (0, 1): Cell(-0.5, "1", "two", "three"),
        (1, 0): Cell(2.0, "4"),
        (1, 1): Cell(0, "5"),
    }
    html = heat_table(["<a>", "b"], lambda row, column: cells[row, column])
    assert html.count('<th scope="row">&lt;a&gt;</th>') == html.count('<th scope="col">&lt;a&gt;</th>') == 1
    assert re.findall(r"<td.*?</td>", html) == [
        "<td>?</td>",
        f'<td style="background: rgba{(*LOW, 0.375)}" title="three">1<small>two</small></td>',
        f'<td style="background: rgba({HIGH[0]}, {HIGH[1]}, {HIGH[2]}, 0.750)">4</td>',
        f'<td style="background: rgba({LOW[0]}, {LOW[1]}, {LOW[2]}, 0.000)">5</td>',
    ]


@pytest.mark.parametrize("more", [0, 1])
def test_a_large_table_has_colors_and_titles_only(more):
    html = heat_table([str(place) for place in range(NUMBERS + more)], lambda *_: Cell(1.0, "number", "below", "title"))
    assert html.count('title="title"') == (NUMBERS + more) ** 2
    assert (">number<" in html, 'class="heat many"' in html) == (not more, bool(more))


def test_a_picture_has_a_color_and_a_text_for_every_value():
    figure = pytest.importorskip("matplotlib.figure", reason="the extra 'report' is not installed").Figure()
    axes = figure.subplots()
    draw_cells(axes, ["a", "b"], [[1.0, -1.0], [math.nan, 0.0]], [["w", "x"], ["y", "z"]])
    assert [(text.get_text(), text.get_color()) for text in axes.texts] == [
        ("w", "white"),
        ("x", "white"),
        ("z", "black"),
    ]
    (image,) = axes.images
    colors = image.to_rgba(image.get_array(), bytes=True)[..., :3].reshape(4, 3).tolist()
    assert colors[:2] == [list(HIGH), list(LOW)]
    assert len(set(colors[2])) == 1 and max(abs(part - 255) for part in colors[3]) <= 2
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
