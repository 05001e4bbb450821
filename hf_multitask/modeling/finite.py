"""Weights that are NaN or infinite: no save and no pipeline takes them."""

from collections.abc import Iterable

import torch


class WeightsError(ValueError):
    """A weight is NaN or infinite; the sentence names it."""


def broken_weight(named: Iterable[tuple[str, torch.Tensor]], buffers: Iterable[str] = ()) -> str | None:
    """What of some weights is NaN or infinite, in words; None where all are numbers.

    A sum of weights is not finite where one of them is not, so that only those with such a sum are looked at closely.

    Args:
        named: weights by name; those that are no floats, or not in memory, are passed over.
        buffers: names of those that may hold infinities, as some masks do, but no NaN.
    """
    kept = [
        (name, value.detach())
        for name, value in named
        if value.is_floating_point() and value.element_size() > 1 and not value.is_meta and is_plain(value)
    ]
    sums: dict[torch.device, list[torch.Tensor]] = {}
    for _, value in kept:
        total = value.sum(dtype=torch.promote_types(value.dtype, torch.float32))
        sums.setdefault(value.device, []).append(total.isfinite())
    finite = {device: iter(torch.stack(values).tolist()) for device, values in sums.items()}
    masks = set(buffers)
    for name, value in kept:
        if not next(finite[value.device]):
            wrong = value.isnan() if name in masks else ~value.isfinite()
            if count := int(wrong.sum()):
                return f"Weight '{name}' is NaN or infinite in {count:,} of its {value.numel():,} numbers"
    return None


def is_plain(value: torch.Tensor) -> bool:
    """Whether a tensor is torch's own; a quantized one of another library has no sum."""
    return type(value.detach()).__module__.partition(".")[0] == "torch"


def check_weights(model: torch.nn.Module, consequence: str, weights: Iterable[tuple[str, torch.Tensor]] = ()) -> None:
    """Check that a model's weights are numbers.

    Args:
        model: whose parameters and buffers they are.
        consequence: what does not happen otherwise, and the way out.
        weights: by name, in place of the model's own, such as those that are saved.

    Raises:
        WeightsError: one is NaN or infinite.
    """
    buffers = [name for name, _ in model.named_buffers()]
    found = broken_weight(weights or [*model.named_parameters(), *model.named_buffers()], buffers)
    if found is not None:
        raise WeightsError(f"{found}, {consequence}")
