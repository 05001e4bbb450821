"""Speech encoders whose layers mix the frames of padding with those of a recording, made independent of the padding.

Legend: B rows, C channels, S samples, F frames of the first convolution.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedConfig

from .aliases import Open


@contextmanager
def ignoring_padding(backbone: nn.Module, config: PreTrainedConfig, mask_BS: torch.Tensor | None) -> Iterator[None]:
    r"""Within it, the frames of padding do not change those of the recordings.

    Encoders with ``feat_extract_norm="group"`` scale every channel of the first convolution by its mean and variance
    over time, of the padding as well. Here these are of the frames that are there, so a recording has the same states
    as alone. The convolutions of SpeechT5 and Data2Vec that make positions read zeros in place of padding, as that of
    Wav2Vec2 does. Batches without padding run as the family has it.

    Args:
        backbone: reads the samples.
        config: its configuration.
        mask_BS: which samples are there; all of them where None.
    """
    owner, places = _mixing(backbone)
    if not (norms_over_time(config) or places) or mask_BS is None or bool(mask_BS.all()):
        yield
        return
    lengths_B = (mask_BS.sum(1) - config.conv_kernel[0]) // config.conv_stride[0] + 1
    thread = threading.get_ident()

    def silenced(axis: int, _: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if threading.get_ident() != thread:
            return None
        there_BF = owner._get_feature_vector_attention_mask(inputs[0].shape[axis], mask_BS).bool()
        return (inputs[0].masked_fill(~there_BF.unsqueeze(3 - axis), 0),)

    def rerun(norm: nn.GroupNorm, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor | None:  # noqa: ARG001
        return masked_norm(norm, inputs[0], lengths_B) if threading.get_ident() == thread else None

    hooks = [norm.register_forward_hook(rerun) for norm in time_norms(backbone)] if norms_over_time(config) else []
    hooks += [layer.register_forward_pre_hook(partial(silenced, axis)) for layer, axis in places]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _mixing(backbone: nn.Module) -> tuple[Open, list[tuple[nn.Module, int]]]:
    """Layers that read frames of padding, with the axis of frames of what they read, and who knows which these are."""
    prenet: Open = getattr(backbone, "prenet", None)
    if hasattr(prenet, "pos_conv_embed"):
        return prenet, [(prenet.pos_conv_embed, 1)]
    layers = getattr(getattr(getattr(backbone, "encoder", None), "pos_conv_embed", None), "layers", ())
    return backbone, [(layer, 2) for layer in layers]


def norms_over_time(config: PreTrainedConfig) -> bool:
    """Whether the states of a recording depend on how far its batch is padded."""
    return getattr(config, "feat_extract_norm", None) == "group"


def run_time_norms_once(backbone: nn.Module) -> None:
    """Leave the layers that normalize over time out of activation checkpointing, whose second run has no mask."""
    for layer in backbone.modules():
        if getattr(layer, "gradient_checkpointing", False) and any(map(_is_time_norm, layer.children())):
            layer.gradient_checkpointing = False  # type: ignore[assignment]


def time_norms(backbone: nn.Module) -> list[nn.GroupNorm]:
    """The layers that normalize each channel over time."""
    return [module for module in backbone.modules() if _is_time_norm(module)]  # type: ignore[misc]


def _is_time_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels


def masked_norm(norm: nn.GroupNorm, hidden_BCF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """A group norm with a group per channel, over the first frames of every row."""
    wide_BCF = hidden_BCF if hidden_BCF.dtype == torch.float64 else hidden_BCF.float()
    frames_F = torch.arange(hidden_BCF.shape[-1], device=hidden_BCF.device)
    there_B1F = (frames_F < lengths_B.unsqueeze(1)).unsqueeze(1).to(wide_BCF.dtype)
    number_B11 = lengths_B.clamp(min=1).view(-1, 1, 1)
    mean_BC1 = (wide_BCF * there_B1F).sum(-1, keepdim=True) / number_B11
    apart_BCF = (wide_BCF - mean_BC1) * there_B1F
    variance_BC1 = apart_BCF.square().sum(-1, keepdim=True) / number_B11
    scaled_BCF = apart_BCF * torch.rsqrt(variance_BC1 + norm.eps)
    if norm.affine:
        scaled_BCF = scaled_BCF * norm.weight.view(-1, 1) + norm.bias.view(-1, 1)
    return scaled_BCF.to(hidden_BCF.dtype)
