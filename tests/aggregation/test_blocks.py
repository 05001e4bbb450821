"""Gradients of several tasks, parameter by parameter, dense and by rows."""

import pytest
import torch
from torch import nn

from hf_multitask.aggregation import Blocks, build_aggregator, combine


def filled(tables, dtype=torch.float64):
    """Blocks of a matrix and an embedding for two tasks, and the same gradients in full, (K, P)."""
    generator = torch.Generator().manual_seed(0)
    matrix, embedding = (nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((3, 5000), (7, 4)))
    blocks = Blocks([matrix, embedding])
    blocks.begin(2)
    whole = []
    for task in range(2):
        dense = torch.randn(3, 5000, generator=generator, dtype=dtype)
        ids = torch.tensor([[1, 1, 4], [4, 6, 0]][task])
        values = torch.randn(3, 4, generator=generator, dtype=dtype)
        blocks.add(matrix, task, dense)
        blocks.add(matrix, task, dense)
        table = torch.zeros(7, 4, dtype=dtype).index_add(0, ids, values)
        if tables == "rows":
            blocks.add_rows(embedding, task, ids, values)
        elif tables == "sparse":
            blocks.add(
                embedding, task, torch.sparse_coo_tensor(ids.unsqueeze(0), values, (7, 4), check_invariants=True)
            )
        elif task:
            blocks.add(embedding, task, table)  # one task's by rows, as of a tied head, the other's dense
        else:
            blocks.add_rows(embedding, task, ids, values)
        whole.append(torch.cat([2 * dense.flatten(), table.flatten()]))
    blocks.close()
    return blocks, torch.stack(whole)


@pytest.mark.parametrize("tables", ["rows", "sparse", "both"])
def test_gramian_and_update_are_those_of_the_whole_matrix(tables):
    blocks, whole_KP = filled(tables)
    torch.testing.assert_close(blocks.gramian(), whole_KP @ whole_KP.T)
    combine(build_aggregator("constant", {"weights": {"a": 2.0, "b": -1.0}}), blocks, ("a", "b"), seed=0)
    update = torch.cat([parameter.grad.flatten() for parameter in blocks.parameters])
    torch.testing.assert_close(update, 2 * whole_KP[0] - whole_KP[1])


def test_gramian_of_float32_is_exact_over_millions_of_entries():
    parameter = nn.Parameter(torch.zeros(2_000_003))
    blocks = Blocks([parameter])
    blocks.begin(2)
    gradients = torch.randn(2, 2_000_003, generator=torch.Generator().manual_seed(0)) + 0.3
    for task, gradient in enumerate(gradients):
        blocks.add(parameter, task, gradient)
    blocks.close()
    expected = gradients.double() @ gradients.double().T
    torch.testing.assert_close(blocks.gramian(), expected, rtol=1e-6, atol=0)


def test_task_without_a_gradient_of_a_parameter_has_zero_there():
    one, other = (nn.Parameter(torch.zeros(4)) for _ in range(2))
    blocks = Blocks([one, other])
    for size in (3, 2):  # buffers of the step before hold other numbers
        blocks.begin(size)
        blocks.add(one, 1, torch.full((4,), float(size)))
        blocks.close()
        assert torch.equal(blocks.gradient(one, 0), torch.zeros(4))
        assert torch.equal(blocks.gradient(one, 1), torch.full((4,), float(size)))
        assert blocks.gradient(other, 0) is None
    combine(build_aggregator("sum"), blocks, ("a", "b"), seed=0)
    assert other.grad is None and torch.equal(one.grad, torch.full((4,), 2.0))


def test_draws_are_the_same_whether_an_embedding_is_kept_by_rows_or_whole():
    found = []
    for tables in ("rows", "both"):
        blocks, _ = filled(tables)
        combine(build_aggregator("graddrop"), blocks, ("a", "b"), seed=3)
        found.append([parameter.grad for parameter in blocks.parameters])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
