"""The batch contract: what the loader returns for a micro-batch, and what one forward pass of the model receives.

Legend: B rows of a batch, N items of a task, M items that only its teacher answers, G rows
that an item reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch


class ModelInputs(TypedDict):
    """The inputs of one forward pass: the two keys here, and the inputs of the reader, such as ``input_ids`` (B, L).

    Attributes:
        task_rows: by task, the rows of its items, (N,) or (N, G), padded with -1.
        labels: by task, the labels of its N items.
    """

    task_rows: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]


class SoftInputs(ModelInputs, total=False):
    """The inputs of one forward pass with soft labels, from which the loss of a task with a teacher is made.

    Attributes:
        soft_rows: by task, the rows of items that have no label of it, (M,) or (M, G), padded with -1.
        soft_labels: by task, what its teacher answers for the N items and then for the M.
    """

    soft_rows: dict[str, torch.Tensor]
    soft_labels: dict[str, torch.Tensor]


class WeightedInputs(ModelInputs, total=False):
    """The inputs of one forward pass with weights of rows.

    Attributes:
        row_weights: by task whose rows have weights, those of the N items, (N,), or (N, P) of groups of P pairs.
        soft_weights: the same for the N and the M items of the soft labels.
    """

    row_weights: dict[str, torch.Tensor]
    soft_weights: dict[str, torch.Tensor]


class MicroBatch(TypedDict):
    """A micro-batch of one process, in one or more forward passes.

    Attributes:
        forwards: the inputs of each forward pass.
        row_numbers: of each forward pass, by task, the row indices in the dataset.
        rows: by dataset, the number of rows.
        anchors: by stream, the position from which the rows after this micro-batch can be read.
    """

    forwards: list[ModelInputs]
    row_numbers: list[dict[str, list[int]]]
    rows: Mapping[str, int]
    anchors: dict[str, dict[str, Any]]
