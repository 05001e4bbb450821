"""One backbone of several that were fine-tuned from the same checkpoint: their mean, or TIES-Merging."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

Weights = Mapping[str, torch.Tensor]
TIES = "ties"
DENSITY, SCALE = 0.2, 1.0  # of the paper, where nothing can be tuned
_DIGIT = 16  # bits of a number that are counted at a time


def mean(found: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of weights, in their dtype; of whole numbers, and of equal weights, the first."""
    first = found[0]
    if not first.is_floating_point() or all(torch.equal(first, one) for one in found[1:]):
        return first
    return torch.stack([one.to("cpu", _wide([one])) for one in found]).mean(0).to(first.dtype)


def _wide(found: Iterable[torch.Tensor]) -> torch.dtype:
    """The dtype in which weights are added: float32, or float64 if one has it."""
    return torch.float64 if any(one.dtype == torch.float64 for one in found) else torch.float32


def check_ties(base: object, density: object, scale: object) -> None:
    """Check the arguments of TIES-Merging.

    Raises:
        ValueError: one is missing or not usable.
    """
    if base is None:
        raise ValueError(
            "`backbone = 'ties'` compares the models with the checkpoint that they were fine-tuned from. Give it in "
            "`base`: a model, a folder or a Hub id."
        )
    for name, value, most, words in (
        ("density", density, 1.0, "above 0 and up to 1: the share of a model's changes that is kept"),
        ("scale", scale, math.inf, "above 0: the factor of the merged changes"),
    ):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not 0 < value <= most:  # type: ignore[operator]
            default = DENSITY if name == "density" else SCALE
            raise ValueError(f"`{name}` should be a number {words}. Found `{name} = {value!r}`. Set {default:g}.")


@dataclass(frozen=True)
class Ties:
    r"""Models merged by their changes of a checkpoint, without those that are small or contradict the others.

    With the changes :math:`\tau_t = \theta_t - \theta_0` of model t, of which all but the share ``density`` with the
    largest magnitudes are set to 0, and the sign :math:`\gamma = \operatorname{sgn}(\sum_t \tau_t)` of every weight,
    the merged weight is :math:`\theta_0 + \lambda \operatorname{mean}_{t : \operatorname{sgn}(\tau_t) = \gamma} \tau_t`
    (TIES-Merging, NeurIPS 2023, algorithm 1, https://arxiv.org/abs/2306.01708).

    The largest magnitudes are those of all weights of a model together. Weights are read one tensor after the other, a
    few times, so that no more than a tensor of every model is needed beside the models.

    .. note::
        Where changes cancel each other, the sum has no sign, and the weight stays that of the checkpoint, as in the
        paper. The official code takes the sign that most weights have.

    Args:
        base: weights of the checkpoint, by name.
        models: by model, its weights.
        density: see above.
        scale: :math:`\lambda`.
    """

    base: Weights
    models: Mapping[str, Weights]
    density: float = DENSITY
    scale: float = SCALE
    _least: dict[str, torch.Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for name in self.models:
            self._least[name] = least_of_largest(lambda name=name: self._changes(name), self.density)  # type: ignore[misc]

    @property
    def _dtype(self) -> torch.dtype:
        return _wide([*self.base.values(), *(one for weights in self.models.values() for one in weights.values())])

    def _changes(self, name: str) -> Iterable[torch.Tensor]:
        weights, dtype = self.models[name], self._dtype
        return (self._change(key, weights[key], dtype) for key in self.base if key in weights)

    def _change(self, key: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return weight.to("cpu", dtype) - self.base[key].to("cpu", dtype)

    def merged(self, key: str) -> torch.Tensor:
        """A merged weight, in the dtype in which it was computed."""
        dtype, changes = self._dtype, []
        for name, weights in self.models.items():
            if key in weights:
                change = self._change(key, weights[key], dtype)
                changes.append(change.masked_fill_(change.abs() < self._least[name], 0))
        sign = sum(changes[1:], start=changes[0]).sign()
        total, count = torch.zeros_like(sign), torch.zeros_like(sign)
        for change in changes:
            agrees = (change.sign() == sign) & (sign != 0)
            total += change.masked_fill(~agrees, 0)
            count += agrees
        return self.base[key].to("cpu", dtype) + self.scale * (total / count.clamp_(min=1))


def least_of_largest(tensors: Callable[[], Iterable[torch.Tensor]], share: float) -> torch.Tensor:
    """The least magnitude among the share of largest ones of some numbers, without a copy of all of them.

    The bits of magnitudes have their order, so they are found digit by digit, beginning with the largest.

    Args:
        tensors: gives the numbers, of one dtype, as often as it is called.
        share: above 0; of one number or more.

    Returns:
        A scalar; 0 if there are no numbers.
    """
    total, dtype = 0, torch.float32
    for one in tensors():
        total, dtype = total + one.numel(), one.dtype
    rank, found = max(1, round(share * total)), 0
    if rank >= total:
        return torch.zeros((), dtype=dtype)
    whole = torch.int64 if dtype == torch.float64 else torch.int32
    top = torch.iinfo(whole).bits - _DIGIT
    for shift in range(top, -1, -_DIGIT):
        counts = torch.zeros(2**_DIGIT, dtype=torch.int64)
        for one in tensors():
            bits = one.abs().flatten().view(whole)
            if shift < top:
                bits = bits[bits >> (shift + _DIGIT) == found]
            counts += torch.bincount((bits >> shift) & (2**_DIGIT - 1), minlength=2**_DIGIT)
        larger = counts.flip(0).cumsum(0)
        place = int((larger < rank).sum())
        rank -= int(larger[place - 1]) if place else 0
        found = found << _DIGIT | (2**_DIGIT - 1 - place)
    return torch.tensor(found, dtype=whole).view(dtype)
