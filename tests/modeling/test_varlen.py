"""The attention over a stream of tokens against softmax with a mask of blocks, and what it refuses."""

import logging
from itertools import product

import pytest
import torch
from torch import nn

from hf_multitask.modeling.varlen import boundaries, no_mask, varlen_attention

LENGTHS = (4, 1, 9, 0, 6)


def layer(causal=False):
    made = nn.Module()
    made.is_causal = causal
    return made


def stream(heads=4, keys=4, width=8, dtype=torch.float64, device="cpu"):
    """Queries, keys and values (1, H, T, W), and the boundaries of rows."""
    draw = torch.Generator().manual_seed(1)
    shapes = [(1, one, sum(LENGTHS), width) for one in (heads, keys, keys)]
    tensors = [torch.randn(shape, generator=draw, dtype=torch.float64).to(device, dtype) for shape in shapes]
    bounds = torch.tensor([0, *LENGTHS], device=device).cumsum(0).int()
    return [one.requires_grad_() for one in tensors], boundaries(bounds, max(LENGTHS))


def by_mask(query, key, value, causal, window):
    """Attention with one mask for the whole stream, (1, T, H, W)."""
    row_T = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    before_TT = torch.arange(len(row_T)).unsqueeze(1) - torch.arange(len(row_T))
    seen_TT = row_T.unsqueeze(1) == row_T
    if causal:
        seen_TT &= before_TT >= 0
    if window is not None:
        seen_TT &= before_TT.abs() < window
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, 1) for one in (key, value))
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    return (scores.masked_fill(~seen_TT.to(scores.device), -torch.inf).softmax(-1) @ value).transpose(1, 2)


def gradients(output, tensors):
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    return torch.autograd.grad((output * weights).sum(), tensors)


CASES = list(product([False, True], [None, 3], [4, 2]))


@pytest.mark.parametrize(("causal", "window", "keys"), CASES)
def test_a_token_reads_its_own_row(causal, window, keys):
    tensors, given = stream(keys=keys)
    found, weights = varlen_attention(layer(causal), *tensors, no_mask("cpu"), sliding_window=window, **given)
    wanted = by_mask(*tensors, causal, window)
    assert weights is None and found.shape == (1, sum(LENGTHS), 4, 8)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    for one, other in zip(gradients(found, tensors), gradients(wanted, tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    scaled, _ = varlen_attention(
        layer(), *tensors, None, is_causal=causal, scaling=8**-0.5, sliding_window=window, **given
    )
    torch.testing.assert_close(scaled, wanted, rtol=0, atol=1e-12)


def test_dropout_of_the_weights_of_attention_is_set_aside_with_a_warning(caplog):
    tensors, given = stream()
    with caplog.at_level(logging.WARNING):
        found, _ = varlen_attention(layer(), *tensors, None, dropout=0.125, **given)
    assert "has no dropout of the weights of attention" in caplog.text and "0.125" in caplog.text
    torch.testing.assert_close(found, by_mask(*tensors, False, None), rtol=0, atol=1e-12)


def test_what_changes_the_scores_is_refused():
    tensors, given = stream()
    with pytest.raises(ValueError, match="has no `softcap`"):
        varlen_attention(layer(), *tensors, None, softcap=30.0, **given)
    mask = torch.ones(1, 1, sum(LENGTHS), sum(LENGTHS), dtype=torch.bool)
    with pytest.raises(ValueError, match="takes no mask"):
        varlen_attention(layer(), *tensors, mask, **given)


def test_without_boundaries_the_mask_counts():
    tensors, _ = stream()
    mask = torch.ones(1, 1, sum(LENGTHS), sum(LENGTHS), dtype=torch.bool).tril()
    found, _ = varlen_attention(layer(), *tensors, mask)
    wanted = nn.functional.scaled_dot_product_attention(*tensors, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("causal", "window", "keys"), CASES)
def test_the_kernel_of_a_gpu(causal, window, keys):
    tensors, given = stream(keys=keys, dtype=torch.bfloat16, device="cuda")
    found, _ = varlen_attention(layer(causal), *tensors, None, sliding_window=window, **given)
    wanted = by_mask(*(one.float() for one in tensors), causal, window)
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-2)
    for one, other in zip(gradients(found, tensors), gradients(wanted, tensors), strict=True):
        assert float((one.float() - other.float()).norm() / other.float().norm()) < 2e-2
