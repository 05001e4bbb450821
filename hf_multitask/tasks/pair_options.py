"""The options of a task on pairs: hard negatives, the loss, Matryoshka dimensions and a prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..modeling.config import close_match
from ..modeling.similarity import COSINE, DISTANCES, NEGATIVES, PAIR_LOSSES, TRIPLET, pair_loss
from .base import Task

_SCALE = 20.0


@dataclass(kw_only=True)
class PairOptions(Task):
    """A task on pairs of texts whose loss has options; see its subclass for the arguments."""

    groups_by_loss: ClassVar[bool] = True
    label_column: str | None = None
    negatives_column: str | None = None
    negatives: int = 16
    scale: float = _SCALE
    loss: str | None = None
    loss_kwargs: dict[str, float | str] | None = None
    matryoshka_dims: list[int] | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("negatives", 2, none=False)
        self._check_loss()
        self._check_loss_kwargs()
        self._check_dims()
        if self.prompt is not None and not isinstance(self.prompt, str):
            raise self.error(
                f"`prompt` should be the text that every text begins with. Found `prompt = {self.prompt!r}`."
            )

    @property
    def loss_name(self) -> str:
        """The name of the loss: the option, or what follows from the columns."""
        return pair_loss({"loss": self.loss, "label_column": self.label_column}).name

    @property
    def groups(self) -> bool:
        """Whether the rows of a group are the negatives of each other."""
        return self.loss_name == NEGATIVES

    def _check_loss(self) -> None:
        """Check that the columns are there that the loss reads, and no other.

        Raises:
            ValueError: they are not.
        """
        if self.loss is not None and self.loss not in PAIR_LOSSES:
            raise self.error(
                f"`loss` should be one of {', '.join(PAIR_LOSSES)}. Found `loss = {self.loss!r}`."
                + close_match(str(self.loss), list(PAIR_LOSSES))
            )
        loss = self.loss_name
        if loss == COSINE and self.label_column is None:
            raise self.error(
                f"`loss = '{loss}'` compares the cosine of a pair with its score, and there is no label_column. Set "
                f"label_column, or loss to {NEGATIVES}."
            )
        if loss != COSINE and self.label_column is not None:
            raise self.error(
                f"`loss = '{loss}'` reads no scores. Found `label_column = {self.label_column!r}`. Leave out one of "
                "them."
            )
        if loss == TRIPLET and self.negatives_column is None:
            raise self.error(
                f"`loss = '{loss}'` compares a pair with a hard negative, and there is no negatives_column. Set "
                f"negatives_column, or loss to {NEGATIVES}."
            )
        if loss == COSINE and self.negatives_column is not None:
            raise self.error(
                f"`negatives_column` is for the losses {NEGATIVES} and {TRIPLET}, and the loss is {loss}. Leave out "
                "negatives_column, or label_column."
            )

    def _check_loss_kwargs(self) -> None:
        loss, given = self.loss_name, self.loss_kwargs
        known = PAIR_LOSSES[loss]
        if not isinstance(given or {}, Mapping):
            raise self.error(
                f"`loss_kwargs` should be a mapping. Found `loss_kwargs = {given!r}`. Write it as {{margin: 0.5}}."
            )
        for key, value in (given or {}).items():
            if key not in known:
                owner = next((other for other, names in PAIR_LOSSES.items() if key in names), None)
                fix = f" Set loss to {owner}." if owner else close_match(str(key), list(known)) or " Leave it out."
                raise self.error(
                    f"`loss_kwargs` of {loss} has the unknown key '{key}'; known keys are "
                    f"{', '.join(known) or 'none'}.{fix}"
                )
            if key == "distance":
                if value not in DISTANCES:
                    raise self.error(
                        f"`distance` of `loss_kwargs` should be one of {', '.join(DISTANCES)}. Found {value!r}."
                        + close_match(str(value), list(DISTANCES))
                    )
            elif not _is_positive(value) and not (key == "margin" and value == 0):
                least = "0 or more" if key == "margin" else "above 0"
                raise self.error(
                    f"`{key}` of `loss_kwargs` should be a number, {least}. Found {value!r}. Set {known[key]}, for "
                    "example."
                )
        if not _is_positive(self.scale):
            raise self.error(
                f"`scale` should be a number above 0. Found `scale = {self.scale!r}`. Set 20, for example."
            )
        other = (given or {}).get("scale", self.scale)
        if self.scale not in (_SCALE, other):
            raise self.error(
                f"`scale` is given twice. Found `scale = {self.scale!r}`, and {other!r} in `loss_kwargs`. Leave out "
                "one of them."
            )

    def _check_dims(self) -> None:
        given = self.matryoshka_dims
        if given is None:
            return
        numbers = isinstance(given, list | tuple) and all(
            isinstance(dim, int) and not isinstance(dim, bool) and dim > 0 for dim in given
        )
        if not numbers or not given or len(set(given)) < len(given):
            raise self.error(
                "`matryoshka_dims` should be a list of different whole numbers, 1 or more. Found `matryoshka_dims = "
                f"{given!r}`. Set [256, 128, 64], for example."
            )
        self.matryoshka_dims = list(given)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
