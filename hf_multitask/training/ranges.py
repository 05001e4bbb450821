"""Numbers among the training arguments: where each of them has to lie, and none of them NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Where a number has to lie.

    Args:
        least: the least that it may be.
        most: the most that it may be.
        above_least: whether it has to be more than ``least``.
        below_most: whether it has to be less than ``most``.
    """

    least: float = 0.0
    most: float = math.inf
    above_least: bool = False
    below_most: bool = False

    def broken(self, number: object) -> str | None:
        """The rule that a value breaks, in words; None where it lies in the range."""
        if isinstance(number, bool) or not isinstance(number, int | float):
            return "a number"
        above = number > self.least if self.above_least else number >= self.least
        below = number < self.most if self.below_most else number <= self.most
        if above and number == math.inf:
            return "finite"
        if above and below:
            return None
        if self.below_most or self.above_least:  # the error of a narrow range has both bounds
            return self._words
        return f"{self.least:g} or more" if not above else f"at most {self.most:.10g}"

    @property
    def _words(self) -> str:
        least = f"more than {self.least:g}" if self.above_least else f"{self.least:g} or more"
        most = f"less than {self.most:g}" if self.below_most else f"at most {self.most:g}"
        return least if self.most == math.inf else f"{least} and {most}"


# A number that is not named here has to be finite, if it is a float.
RANGES: dict[str, Range] = {
    "learning_rate": Range(most=10),  # with which every optimizer diverges
    "weight_decay": Range(),
    "adam_beta1": Range(most=1, below_most=True),
    "adam_beta2": Range(most=1, below_most=True),
    "adam_epsilon": Range(above_least=True),  # 0 / 0 where a gradient is zero
    "max_grad_norm": Range(),
    "num_train_epochs": Range(),
    "warmup_steps": Range(),
    "logging_steps": Range(),
    "eval_steps": Range(),
    "eval_delay": Range(),
    "save_steps": Range(),
    "neftune_noise_alpha": Range(),
    "layerwise_lr_decay": Range(most=1, above_least=True),
    "per_device_train_batch_size": Range(least=1),
    "per_device_eval_batch_size": Range(least=1),
    "gradient_accumulation_steps": Range(least=1),
    "dataloader_num_workers": Range(),
    "dataloader_prefetch_factor": Range(least=1),
    "max_steps": Range(least=-1),  # -1 leaves the number to num_train_epochs
    "eval_accumulation_steps": Range(least=1),
    "torch_empty_cache_steps": Range(least=1),
    "seed": Range(most=2**32 - 1),  # what NumPy takes
    "data_seed": Range(most=2**32 - 1),
    "ddp_bucket_cap_mb": Range(least=1),
    "ddp_timeout": Range(least=1),
}
# Numbers by name, and where each of them has to lie.
BY_NAME: dict[str, Range] = {
    "task_weights": Range(),
    "learning_rates": RANGES["learning_rate"],
    "weight_decays": RANGES["weight_decay"],
}
_MAY_BE_NONE = {
    "eval_steps",
    "neftune_noise_alpha",
    "layerwise_lr_decay",
    "dataloader_prefetch_factor",
    "eval_accumulation_steps",
    "torch_empty_cache_steps",
    "data_seed",
    "ddp_bucket_cap_mb",
}


def check_ranges(values: Mapping[str, object]) -> None:
    """Check that every number of some arguments is one, finite, and where it has to lie.

    Args:
        values: by the name of the argument.

    Raises:
        ValueError: one is not.
    """
    for name, value in values.items():
        if value is None and name in _MAY_BE_NONE:
            continue
        if name in RANGES:
            rule = RANGES[name].broken(value)
        else:
            rule = "finite" if isinstance(value, float) and not math.isfinite(value) else None
        if rule is not None:
            raise ValueError(f"Parameter `{name}` should be {rule}. Found `{name} = {value!r}`.")


def check_by_name(name: str, numbers: Mapping[str, object]) -> None:
    """Check that the numbers of an argument that has one by task lie where they have to.

    Raises:
        ValueError: one does not.
    """
    for part, number in numbers.items():
        rule = BY_NAME[name].broken(number)
        if rule is not None:
            rule = "of 0 or more" if rule == "a number" else f"of {rule}" if "more" in rule else f"that are {rule}"
            raise ValueError(f"Parameter `{name}` should hold numbers {rule}. Found {number!r} for '{part}'.")


def check_finite(name: str, values: object) -> None:
    """Check that no number inside an argument, however deep, is NaN or infinite.

    Raises:
        ValueError: one is.
    """
    for number in _floats(values):
        if not math.isfinite(number):
            raise ValueError(f"Parameter `{name}` should hold finite numbers. Found {number!r} in {values!r}.")


def _floats(values: object) -> Iterator[float]:
    if isinstance(values, float):
        yield values
    elif isinstance(values, Mapping | list | tuple):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _floats(value)
