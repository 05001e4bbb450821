"""Names of what the hooks of a task take and return, where its type depends on the data or on the type of task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# The values of a column, which have the type that the dataset has.
Cells = list[Any]
# Rows of a batch, by column.
Columns = dict[str, Cells]
# A label as its type of task encodes it; None for a row without a label.
Label = Any
Labels = list[Label]
# Labels, or the references of an evaluation if they are more than the labels.
References = Sequence[Any]
# The reference of a row for the evaluation of a token classification, see Aligned.
Gold = dict[str, Any]
# The model inputs of one row, by name.
Inputs = dict[str, Any]
# A task as plain values: name, type and arguments.
TaskDict = dict[str, Any]
# What encode_inputs of a type of task returns for its encode_labels: the tokens of a batch of rows, and more.
Encoding = Any
# Predictions or labels of rows; or by row, those of its labeled tokens.
Ragged = np.ndarray | list[np.ndarray]
# The index of each label, a name or a number.
Table = Mapping[object, int]
