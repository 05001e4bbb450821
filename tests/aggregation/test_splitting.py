"""Layers that tell rows apart, against autograd on one task's rows at a time."""

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from hf_multitask.aggregation import Blocks, NoRowAxisError, RowSplit, Segment, collect_task

SEGMENTS = [Segment(1, 0, 2), Segment(0, 2, 5)]


class Model(nn.Module):
    """A bit of each layer that is known."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 6, padding_idx=3)
        self.positions = nn.Embedding(9, 6)
        self.norm = nn.LayerNorm(6)
        self.up, self.turned = nn.Linear(6, 8), Conv1D(4, 8)
        self.scale = LlamaRMSNorm(4)
        self.out = nn.Linear(4, 6, bias=False)

    def forward(self, ids_BL):
        positions_1L = torch.arange(ids_BL.shape[1]).unsqueeze(0)
        states = self.norm(self.tokens(ids_BL) + self.positions(positions_1L))
        states = self.out(self.scale(self.turned(torch.tanh(self.up(states)))))
        return self.norm(states)  # a layer that is used twice


def make():
    torch.manual_seed(0)
    model = Model().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model, torch.randint(0, 11, (5, 7), generator=torch.Generator().manual_seed(1))


def loss_of(states, rows=slice(None)):
    return (states[rows] ** 3).sum()


ALIKE = [Segment(2, 0, 2), Segment(0, 2, 4), Segment(1, 4, 5)]  # two tasks with as many rows


@pytest.mark.parametrize(
    ("segments", "slots"),
    [(SEGMENTS, None), (ALIKE, None), (ALIKE, [1, 2, 0])],
    ids=["uneven", "apart", "neighbors"],
)
def test_split_gradients_are_those_of_each_task_alone(segments, slots):
    model, ids_BL = make()
    split, blocks = RowSplit(model), Blocks(model.parameters())
    assert not split.unknown
    tasks = len(segments)
    blocks.begin(tasks, slots)
    for _ in range(2):  # micro-batches add up
        with split.rows(blocks, segments):
            loss_of(model(ids_BL)).backward()
    blocks.close()
    passes = Blocks(model.parameters())
    passes.begin(tasks)
    for segment in segments:
        for _ in range(2):
            with collect_task(model, passes, segment.task):
                loss_of(model(ids_BL[segment.start : segment.stop])).backward()
    passes.close()
    for task in range(tasks):
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(blocks.gradient(parameter, task), passes.gradient(parameter, task), msg=name)
            assert parameter.grad is None
    assert "forward" not in model.up.__dict__


def test_forward_of_a_split_is_the_plain_one():
    model, ids_BL = make()
    expected = model(ids_BL)
    blocks = Blocks(model.parameters())
    blocks.begin(2)
    with RowSplit(model).rows(blocks, SEGMENTS):
        found = model(ids_BL)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_layer_that_sees_no_rows_is_named():
    model, ids_BL = make()
    blocks = Blocks(model.parameters())
    blocks.begin(2)
    words = r"layer 'tokens' gets \(4, 7\), but the batch has 5 rows"
    with pytest.raises(NoRowAxisError, match=words), RowSplit(model).rows(blocks, SEGMENTS):
        model(ids_BL[:4])


def test_parameter_used_outside_its_layer_is_found():
    model, ids_BL = make()
    blocks = Blocks(model.parameters())
    blocks.begin(2)
    words = "used outside of its layer"
    with pytest.raises(NoRowAxisError, match=words), RowSplit(model).rows(blocks, SEGMENTS):
        (loss_of(model(ids_BL)) + model.up.weight.sum()).backward()


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.GRU(3, 3), nn.Embedding(3, 3, max_norm=1.0)]
)
def test_layers_that_nobody_knows_are_unknown(layer):
    assert RowSplit(nn.Sequential(nn.Linear(2, 3), layer)).unknown == {"1": type(layer).__name__}
    assert not RowSplit(nn.Sequential(nn.Linear(2, 3), layer.requires_grad_(False))).unknown


def test_layer_whose_forward_was_replaced_is_unknown():
    layer = nn.Linear(2, 2)
    layer.forward = lambda inputs: inputs
    assert RowSplit(nn.Sequential(layer)).unknown == {"0": "Linear"}
