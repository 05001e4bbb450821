"""Attention over the rows of a batch as one stream of tokens, without padding: ``attn_implementation="varlen"``.

It is registered in the ``AttentionInterface`` of Transformers. A stream has the boundaries of its rows in the arguments
that FlashAttention takes: ``cu_seq_lens_q``, ``max_length_q`` and those of the keys. A batch without them, with padding
or of one row, runs by ``sdpa``.

Legend: B rows, H heads, T tokens of all rows, W the width of a head.
"""

from functools import cache
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import logging

from .aliases import Function, Settings, Values
from .keywords import parameter_names

logger = logging.get_logger(__name__)

VARLEN = "varlen"
_WIDEST = 256  # head that the kernel takes, in numbers; its width is a multiple of eight
_LEAST_CAPABILITY = (8, 0)  # of a GPU that has the kernel
_BEYOND = ("softcap", "s_aux", "position_bias")  # what changes the scores of attention beside the boundaries


def boundaries(bounds: torch.Tensor, longest: int) -> Values:
    """The arguments for a stream.

    Args:
        bounds: where each row begins, and the last ends, (B + 1,), int32.
        longest: tokens that no row has more of.
    """
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def no_mask(device: torch.device | str) -> torch.Tensor:
    """What a stream has in place of a mask: one of four axes, which families take as it is.

    Without a mask, families would look for rows in the positions, and make a mask of them, (T, T).
    """
    return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)


def varlen_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each row of a stream; the arguments are those of the ``AttentionInterface``.

    On a GPU, in half precision, it is ``torch.nn.attention.varlen.varlen_attn``; elsewhere each row runs by itself.

    Args:
        module: the layer.
        query: (1, H, T, W).
        key: the same, perhaps of fewer heads.
        value: likewise.
        attention_mask: not read, see :func:`no_mask`.
        dropout: of the weights of attention, which the kernel has none of, so it is 0.
        scaling: of the scores.
        is_causal: whether a token reads only those before it; as the layer has it where None.
        sliding_window: as FlashAttention has it: how many tokens a token reads on either side, itself included.
        kwargs: with ``cu_seq_lens_q``, the boundaries, and ``max_length_q``.

    Returns:
        (1, T, H, W), and no weights.

    Raises:
        ValueError: the family changes the scores, or has a mask of its own.
    """
    if kwargs.get("cu_seq_lens_q") is None:
        given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        return output, None
    _check(attention_mask, kwargs)
    if dropout:
        logger.warning_once(
            "attn_implementation='varlen' has no dropout of the weights of attention, so that of the backbone's "
            f"configuration, {dropout}, has no effect on them. Set it to 0, or set attn_implementation='sdpa'."
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if query.is_cuda and query.dtype == torch.float32 and torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    attend = _by_kernel if _has_kernel(query) else _row_by_row
    window = None if sliding_window is None else sliding_window - 1
    return attend(query, key, value, kwargs, scaling, bool(causal), window), None


def _check(attention_mask: torch.Tensor | None, given: Settings) -> None:
    if found := [name for name in _BEYOND if given.get(name) is not None]:
        raise ValueError(f"attn_implementation='varlen' has no `{found[0]}`. Set attn_implementation='eager'.")
    if attention_mask is not None and attention_mask.numel() > 1:
        raise ValueError("attn_implementation='varlen' takes no mask. Set attn_implementation='sdpa'.")


def _has_kernel(query: torch.Tensor) -> bool:
    """Whether torch's kernel runs here: on a GPU that has it, in half precision."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        if query.is_cuda:
            logger.warning_once(
                "attn_implementation='varlen' is for half precision on a GPU; in "
                f"{str(query.dtype).removeprefix('torch.')} the rows run one by one, which is slow. Set bf16=True, or "
                "set attn_implementation='sdpa'."
            )
        return False
    fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= _WIDEST and _kernel() is not None
    return fits and torch.cuda.get_device_capability(query.device) >= _LEAST_CAPABILITY


@cache
def _kernel() -> Function | None:
    """That of torch, where it takes windows and fewer heads of keys; early versions take neither."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if {"window_size", "enable_gqa"} <= {*parameter_names(varlen_attn)} else None


def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    given: Settings,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    side = -1 if window is None else window
    query_THW, key_THW, value_THW = (one[0].transpose(0, 1) for one in (query, key, value))
    bounds, longest = given["cu_seq_lens_q"], given["max_length_q"]
    output_THW = cast(Function, _kernel())(
        query_THW,
        key_THW,
        value_THW,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(side, 0 if causal else side),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(torch.Tensor, output_THW).unsqueeze(0)


def _row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    given: Settings,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """What the kernel computes, in any precision and on any device."""
    outputs = []
    for start, end in pairwise(given["cu_seq_lens_q"].tolist()):
        mask = _near(end - start, causal, window, query.device)
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                attn_mask=mask,
                is_causal=causal and mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, 2).transpose(1, 2)


def _near(length: int, causal: bool, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Which tokens of a row are within the window; None where all are."""
    if window is None or length <= window + 1:
        return None
    places = torch.arange(length, device=device)
    before = places.unsqueeze(1) - places
    return (before <= window) & (before >= (0 if causal else -window))


def register() -> None:
    """Have Transformers know the attention, with the mask of ``sdpa`` for batches that have padding."""
    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, sdpa_mask)


register()
