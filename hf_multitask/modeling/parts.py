"""Forward passes over a few rows at a time, so that memory is bounded by the batch and not by its longest text."""

from collections.abc import Callable, Mapping

import torch
from torch.utils.checkpoint import checkpoint

from .aliases import Settings, Values

LEAST, MOST_PER_ITEM = 16, 8  # rows of a pass at least, and at most for each item of the largest task

# Model inputs, by task its rows in rising order, and labels of tasks, to outputs for each of these rows.
Run = Callable[[Values, dict[str, torch.Tensor], dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def rows_of_a_pass(task_rows: Mapping[str, torch.Tensor]) -> int | None:
    """How many rows a pass may have; None where every item is a row, so that the batch is what it has to be.

    Args:
        task_rows: as in ``MultiTaskModel.forward``, of the tasks that run.
    """
    if all(rows.dim() == 1 for rows in task_rows.values()):
        return None
    return max(LEAST, MOST_PER_ITEM * max(len(rows) for rows in task_rows.values()))


def rows_in(inputs: Settings) -> int:
    """B of the inputs of a backbone."""
    return next(value.shape[0] for value in inputs.values() if isinstance(value, torch.Tensor))


def part_of(inputs: Settings, start: int, end: int) -> Values:
    """Some rows of the inputs of a backbone."""
    rows = rows_in(inputs)
    return {
        key: value[start:end] if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == rows else value
        for key, value in inputs.items()
    }


def in_parts(
    run: Run,
    inputs: Settings,
    task_rows: Mapping[str, torch.Tensor],
    labels: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Outputs of all rows of the tasks, (M, ...), from passes over :func:`rows_of_a_pass` each.

    A pass with gradients keeps its inputs only, and is run again in the backward pass.

    Args:
        run: one pass.
        inputs: of the backbone, tensors (B, ...).
        task_rows: by task that runs, as in ``MultiTaskModel.forward``.
        labels: by task, (N, ...), for heads that compute outputs where there is a label.

    Returns:
        By task, the outputs of its rows, in the order in which its table has them.
    """
    rows = rows_in(inputs)
    most = rows_of_a_pass(task_rows) or rows
    flat = {name: own[own >= 0] for name, own in task_rows.items()}
    found: dict[str, list[torch.Tensor]] = {name: [] for name in flat}
    order: dict[str, list[torch.Tensor]] = {name: [] for name in flat}
    for start in range(0, rows, most):
        part = part_of(inputs, start, start + most)
        own_rows, own_labels = {}, {}
        for name, own in flat.items():
            here = ((own >= start) & (own < start + most)).nonzero()[:, 0]
            if len(here):
                own_rows[name] = own[here] - start
                order[name].append(here)
                if name in labels:
                    own_labels[name] = labels[name][here]
        if not own_rows:
            continue
        if torch.is_grad_enabled():
            outputs = checkpoint(run, part, own_rows, own_labels, use_reentrant=False)
        else:
            outputs = run(part, own_rows, own_labels)
        for name, output in outputs.items():
            found[name].append(output)
    whole = {}
    for name, outputs in found.items():
        output, places = torch.cat(outputs), torch.cat(order[name])
        # Outputs at labeled places are of rows in rising order, and as many as there are labels.
        whole[name] = output if name in labels else torch.empty_like(output).index_copy(0, places, output)
    return whole
