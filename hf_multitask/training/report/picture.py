"""Matrices as pictures, drawn by Pillow, which TensorBoard brings: quick enough for a log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from transformers import TrainerCallback, TrainerState
from transformers.integrations import TensorBoardCallback

from ...hub.heatmap import HIGH, LOW, MIDDLE, ink

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from ..trainer import MultiTaskTrainer

_CELL, _MARGIN, _TEXT = 64, 12, 16  # pixels
_LONGEST = 24  # letters of a name
_UNKNOWN = (221, 221, 221)


def color(cosine: float | None) -> tuple[int, int, int]:
    """The color of a cosine; gray if there is none."""
    if cosine is None:
        return _UNKNOWN
    end, part = (HIGH, cosine) if cosine > 0 else (LOW, -cosine)
    red, green, blue = (round(one + (other - one) * min(part, 1.0)) for one, other in zip(MIDDLE, end, strict=True))
    return red, green, blue


def draw_cells(names: Sequence[str], cells: Callable[[int, int], tuple[float | None, str]]) -> np.ndarray:
    """A matrix with the names of rows and columns, and its values in the cells, (height, width, 3).

    Args:
        names: of rows and columns, K of them.
        cells: by row and column, a value from -1 to 1 that colors the cell, None for a gray one, and its text.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_TEXT)
    shown = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..." for name in names]
    room = _MARGIN + max(round(font.getlength(name)) for name in shown) + _MARGIN
    size = room + _CELL * len(names) + _MARGIN
    picture = Image.new("RGB", (size, size), MIDDLE)
    pen = ImageDraw.Draw(picture)
    for number, name in enumerate(shown):
        middle = room + _CELL * number + _CELL // 2
        pen.text((room - _MARGIN, middle), name, "black", font, anchor="rm")
        upright = Image.new("RGB", (room - _MARGIN, _CELL), MIDDLE)
        ImageDraw.Draw(upright).text((0, _CELL // 2), name, "black", font, anchor="lm")
        picture.paste(upright.rotate(90, expand=True), (middle - _CELL // 2, 0))
    for row in range(len(names)):
        for column in range(len(names)):
            value, text = cells(row, column)
            left, top = room + _CELL * column, room + _CELL * row
            pen.rectangle((left, top, left + _CELL - 2, top + _CELL - 2), color(value))
            if value is not None:
                pen.text((left + _CELL // 2, top + _CELL // 2), text, ink(value), font, anchor="mm")
    return np.asarray(picture)


def draw_matrix(names: Sequence[str], cosines: Mapping[tuple[str, str], float]) -> np.ndarray:
    """The cosines between tasks as a picture.

    Args:
        names: of the tasks, K of them.
        cosines: by pair of them.
    """

    def cell(row: int, column: int) -> tuple[float | None, str]:
        one, other = names[row], names[column]
        cosine = 1.0 if one == other else cosines.get((one, other), cosines.get((other, one)))
        return cosine, "" if cosine is None else f"{cosine:+.2f}"

    return draw_cells(names, cell)


def writers(trainer: MultiTaskTrainer) -> list[SummaryWriter]:
    """What writes for TensorBoard, if anything does."""
    callbacks = [one for one in trainer.callback_handler.callbacks if isinstance(one, TensorBoardCallback)]
    return [one.tb_writer for one in callbacks if one.tb_writer is not None]


class CosinesCallback(TrainerCallback):
    """Shows the cosines of a log as a picture in TensorBoard.

    Args:
        trainer: whose they are.
    """

    def __init__(self, trainer: MultiTaskTrainer) -> None:
        self.trainer = trainer

    def on_log(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:  # noqa: ARG002
        """Draw what there is to draw."""
        probe = self.trainer.engine.probe
        cosines, probe.cosines = probe.cosines, {}
        if not cosines or not state.is_world_process_zero:
            return
        for writer in writers(self.trainer):
            picture = draw_matrix(list(self.trainer.tasks), cosines)
            writer.add_image("train/cosines", picture, state.global_step, dataformats="HWC")
            writer.flush()
