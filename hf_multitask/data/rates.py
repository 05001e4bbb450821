"""Sampling rates: the share of each dataset in the rows of a step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from ..modeling.config import close_match


class SamplingRates(ABC):
    """Shares of the datasets of a mixture; the base class of a ``sampler`` that is passed to the trainer.

    The class attribute ``needs_sizes`` says whether the shares depend on sizes, which may be unknown for a stream.
    """

    needs_sizes: ClassVar[bool] = True

    @abstractmethod
    def rates(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """By dataset, its share of the rows of every step; the trainer divides by the sum.

        Args:
            sizes: rows of each dataset; 0 for a stream of unknown size, if the shares need no sizes.
        """

    def rates_at(self, sizes: Mapping[str, int], progress: float) -> dict[str, float]:  # noqa: ARG002
        """The shares at one step of training; by default those of :meth:`rates` at every step.

        The result must depend on the arguments only, because a resumed run calls the method again.

        Args:
            sizes: rows of each dataset.
            progress: 0 at the first step of training, 1 at the last.
        """
        return self.rates(sizes)


class Proportional(SamplingRates):
    """Shares proportional to the sizes: every row is seen once per epoch."""

    def rates(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """See :class:`SamplingRates`."""
        return {name: float(size) for name, size in sizes.items()}


class Uniform(SamplingRates):
    """The same share for every dataset, whatever its size."""

    needs_sizes = False

    def rates(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """See :class:`SamplingRates`."""
        return dict.fromkeys(sizes, 1.0)


class Temperature(SamplingRates):
    r"""Shares :math:`r_m = \min(e_m, K)^{1/T}` of the sizes :math:`e_m`.

    Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (JMLR 2020), section 3.5.2,
    https://jmlr.org/papers/v21/20-074.html. ``temperature=1`` is proportional; larger values are closer to uniform.

    Args:
        temperature: T, 1 or more. The default is the choice of 2 of the paper.
        cap: K in rows; no limit if None. The 2**21 of the paper is far above the size of fine-tuning sets.
    """

    def __init__(self, *, temperature: float = 2.0, cap: int | None = None) -> None:
        if not _is_number(temperature) or temperature < 1:
            raise ValueError(f"Parameter `temperature` should be 1 or more. Found `temperature = {temperature!r}`.")
        if cap is not None and (not isinstance(cap, int) or cap < 1):
            raise ValueError(f"Parameter `cap` should be a whole number of rows, 1 or more. Found `cap = {cap!r}`.")
        self.temperature, self.cap = temperature, cap

    def rates(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """See :class:`SamplingRates`."""
        return {name: min(size, self.cap or size) ** (1 / self.temperature) for name, size in sizes.items()}


class Annealed(SamplingRates):
    r"""Shares :math:`N_i^\alpha` of the sizes :math:`N_i`, from proportional at the first step to uniform at the last.

    BERT and PALs: Projected Attention Layers for Efficient Adaptation in Multi-Task Learning (ICML 2019), section 3.3,
    https://proceedings.mlr.press/v97/stickland19a.html: :math:`\alpha = 1 - 0.8 \frac{e - 1}{E - 1}` in epoch e of E.

    .. note:: Here :math:`\alpha` decreases from step to step, because one epoch is a common length of training, and
        down to 0, uniform shares; ``end=0.2`` is the final value of the paper.

    Args:
        end: :math:`\alpha` at the last step, from 0 to 1.
    """

    def __init__(self, *, end: float = 0.0) -> None:
        if not _is_number(end) or not 0 <= end <= 1:
            raise ValueError(f"Parameter `end` should be a number from 0 to 1. Found `end = {end!r}`.")
        self.end = end

    def rates(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """The shares at the first step."""
        return self.rates_at(sizes, 0.0)

    def rates_at(self, sizes: Mapping[str, int], progress: float) -> dict[str, float]:
        """See :class:`SamplingRates`."""
        alpha = 1 - (1 - self.end) * progress
        return {name: size**alpha for name, size in sizes.items()}


class Fixed(SamplingRates):
    """Shares that the user sets.

    Args:
        rates: by dataset, a number of 0 or more; they need not sum to 1.
    """

    needs_sizes = False

    def __init__(self, *, rates: Mapping[str, float] | None = None) -> None:
        if not isinstance(rates, Mapping) or not rates:
            raise ValueError(
                "Parameter `rates` of sampling 'fixed' should have a rate for each dataset. Add sampling_kwargs."
            )
        for name, rate in rates.items():
            if not _is_number(rate) or rate < 0:
                raise ValueError(f"The rate of '{name}' should be a number of 0 or more. Found {rate!r}.")
        if not sum(rates.values()):
            raise ValueError("The rates of sampling 'fixed' sum to 0. Set a rate above 0 for one dataset.")
        self._rates = dict(rates)

    def rates(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """See :class:`SamplingRates`."""
        for name in self._rates:
            if name not in sizes:
                raise ValueError(
                    f"Sampling has a rate for '{name}', but the training data are {', '.join(sizes)}."
                    + close_match(name, list(sizes))
                )
        missing = [name for name in sizes if name not in self._rates]
        if missing:
            raise ValueError(f"Sampling has no rate for '{missing[0]}'. Add one; 0 leaves the dataset out.")
        return dict(self._rates)


SAMPLING: dict[str, type[SamplingRates]] = {
    "proportional": Proportional,
    "uniform": Uniform,
    "temperature": Temperature,
    "annealed": Annealed,
    "fixed": Fixed,
}


def build_rates(name: str, kwargs: Mapping[str, Any] | None) -> SamplingRates:
    """The sampling with a name and arguments.

    Raises:
        ValueError: the name or an argument is unknown or invalid.
    """
    if name not in SAMPLING:
        raise ValueError(
            f"Parameter `sampling` should be one of {', '.join(SAMPLING)}. Found `sampling = {name!r}`."
            + close_match(str(name), list(SAMPLING))
        )
    try:
        return SAMPLING[name](**(kwargs or {}))
    except TypeError:
        raise ValueError(
            f"Sampling '{name}' does not accept all of the sampling_kwargs {dict(kwargs or {})}. Fix them."
        ) from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
