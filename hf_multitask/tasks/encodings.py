"""The tokens of a batch of rows, with the windows of long texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import BatchEncoding

from ..modeling.inputs import Windows

if TYPE_CHECKING:
    from ..modeling.inputs import Encoder
    from ..modeling.readers import Reader, Reading, Row
    from .columns import Cells, Columns


class RowEncodings(BatchEncoding):
    """The tokens of a batch of rows; of a text that is too long, those of its first window.

    ``windows`` contains, by row, all windows of the long texts, and ``notes``, by task, what it keeps of
    each row, such as aligned labels.
    """

    training: bool = True  # whether the rows are for training, not for evaluation

    windows: dict[int, Windows]
    notes: dict[str, list[Any]]

    def is_cut(self, row: int) -> bool:
        """Whether a row's text is longer than its first window."""
        return row in self.windows or bool((self.encodings or [])[row].overflowing)

    def text(self, row: int) -> Windows:
        """The windows of a row's text."""
        if row in self.windows:
            return self.windows[row]
        inside = [token for token, sequence in enumerate(self.sequence_ids(row)) if sequence == 0]
        lead, count = (inside[0], len(inside)) if inside else (0, 0)
        ids = {"input_ids": self["input_ids"][row]}
        return Windows([ids], self["offset_mapping"][row][lead : lead + count], [0], lead, count)


def read_rows(
    reader: Reader, task: Row, rows: Mapping[str, Cells], encoder: Encoder, *, several: bool
) -> tuple[Columns, list[Reading], list[bool]]:
    """The model inputs of a batch of rows as the pipeline reads them, the readings, and which rows were truncated.

    Args:
        reader: the type's.
        task: the task's dict.
        rows: the columns, of the batch.
        encoder: of the reader.
        several: whether a row is several inputs of the model.
    """
    columns = reader.columns(task).values()
    readings = [
        reader.read(task, reader.example(task, dict(zip(columns, values, strict=True))), encoder)
        for values in zip(*(rows[column] for column in columns), strict=True)
    ]
    parts = [[inputs for _, inputs in reading.rows] for reading in readings]
    inputs = {
        name: [[one[name] for one in own] if several else own[0][name] for own in parts] for name in encoder.names
    }
    return inputs, readings, [reading.cut for reading in readings]
