"""The options of a loss: weights of classes, smoothing of labels, other losses, and a probability per class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..modeling.config import close_match
from ..modeling.losses import BALANCED, CLASS_LOSSES, LOSS_KWARGS, NUMBER_LOSSES
from . import label_sets
from . import labels as lab
from .base import Task
from .labelled import Labelled

if TYPE_CHECKING:
    from datasets import Dataset

    from .columns import Cells, Table

Soft = TypeVar("Soft", bound="SoftLabels")
# Options that the encoded rows do not depend on.
LOSS_OPTIONS = ("class_weights", "label_smoothing", "loss", "loss_kwargs")
_SINGLE = "single_label_classification"
_SUM = 1e-3  # by which the sum of probabilities may differ from 1


def check_smoothing(task: Task, value: object) -> None:
    """Check the argument ``label_smoothing``.

    Raises:
        ValueError: it is not a number from 0 to less than 1.
    """
    if value is not None and not (_is_number(value) and 0 <= value < 1):  # type: ignore[operator]
        raise task.error(
            f"`label_smoothing` should be a number from 0 to less than 1. Found `label_smoothing = {value!r}`. Set "
            "0.1, for example."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(kw_only=True)
class LabelLoss(Labelled):
    """A task with named labels whose loss has options.

    Args:
        class_weights: a weight in the loss by label, 1 for labels that are not named; or ``"balanced"``, which
            :class:`hf_multitask.MultiTaskTrainer` replaces by weights that are inversely proportional to the
            frequencies of the classes in the training rows. The loss is divided by the sum of the weights, as in
            ``torch.nn.CrossEntropyLoss``. For label sets, the weight of a positive.
        label_smoothing: the share of a label that is spread over all classes, as in ``torch.nn.CrossEntropyLoss``; 0 if
            None.
        loss: ``"cross_entropy"`` or ``"focal"``; for numbers ``"mse"``, ``"huber"`` or ``"mae"``; the first one if
            None.
        loss_kwargs: ``gamma`` of the focal loss, 2 by default; ``delta`` of the Huber loss, 1 by default.
    """

    class_weights: dict[str, float] | str | None = None
    label_smoothing: float | None = None
    loss: str | None = None
    loss_kwargs: dict[str, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_loss()

    def _check_loss(self) -> None:
        """Check the options, as far as labels and problem type are known.

        Raises:
            ValueError: one is invalid, or is not one of the problem type's.
        """
        problem = getattr(self, "problem_type", None)
        numbers = problem == "regression"
        check_smoothing(self, self.label_smoothing)
        if self.label_smoothing and (numbers or problem == "multi_label_classification"):
            what = "numbers have no classes" if numbers else "a label set has no single label to spread"
            raise self.error(
                f"`label_smoothing` is for one label per row, and {what}. Found `label_smoothing = "
                f"{self.label_smoothing!r}`. Leave it out."
            )
        known = NUMBER_LOSSES if numbers else (*CLASS_LOSSES, *(NUMBER_LOSSES if self._may_be_numbers else ()))
        if self.loss is not None and self.loss not in known:
            other = " That is a loss of classes." if self.loss in CLASS_LOSSES else ""
            other = " That is a loss of numbers." if self.loss in NUMBER_LOSSES else other
            raise self.error(
                f"`loss` should be one of {', '.join(known)}. Found `loss = {self.loss!r}`."
                + (other or close_match(str(self.loss), list(known)))
            )
        self._check_loss_kwargs()
        if self.class_weights is not None:
            if numbers:
                raise self.error(
                    f"`class_weights` are for classes, and its labels are numbers. Found `class_weights = "
                    f"{self.class_weights!r}`. Leave them out, or set weight_column for weights of rows."
                )
            self._check_class_weights()

    @property
    def _may_be_numbers(self) -> bool:
        """Whether the labels are numbers as far as is known."""
        return getattr(self, "problem_type", "") is None

    def _check_loss_kwargs(self) -> None:
        known = LOSS_KWARGS.get(self.loss or "", {})
        if not isinstance(self.loss_kwargs or {}, Mapping):
            raise self.error(
                f"`loss_kwargs` should be a mapping. Found `loss_kwargs = {self.loss_kwargs!r}`. Write it as "
                "{gamma: 2}."
            )
        for key, value in (self.loss_kwargs or {}).items():
            if key not in known:
                owner = next((loss for loss, names in LOSS_KWARGS.items() if key in names), None)
                fix = f" Set loss to {owner}." if owner else close_match(str(key), list(known)) or " Leave it out."
                raise self.error(
                    f"`loss_kwargs` of {self.loss or 'the default loss'} has the unknown key '{key}'; known keys are "
                    f"{', '.join(known) or 'none'}.{fix}"
                )
            least = "0 or more" if key == "gamma" else "above 0"
            if not _is_number(value) or value < 0 or (key != "gamma" and value == 0):
                raise self.error(
                    f"`{key}` of `loss_kwargs` should be a number, {least}. Found {value!r}. Set "
                    f"{known[key]:g}, for example."
                )

    def _check_class_weights(self) -> None:
        """Check the weights, and key them by name."""
        given: Any = self.class_weights
        if given == BALANCED:
            return
        if not isinstance(given, Mapping) or not given:
            raise self.error(
                f"`class_weights` should be '{BALANCED}', or a weight by label. Found `class_weights = {given!r}`."
                + (close_match(given, [BALANCED]) if isinstance(given, str) else " Write it as {label: weight}.")
            )
        for label, value in given.items():
            if not _is_number(value) or value < 0:
                raise self.error(
                    f"`class_weights` should be numbers, 0 or more. Found {value!r} for the label {label!r}. Set 1 for "
                    "a label that counts as usual."
                )
        if self.label_names is None:
            return
        table, named = lab.numbering(self.label_names, []), {}
        for label, value in given.items():
            if isinstance(label, bool) or label not in table:
                names = ", ".join(self.label_names[:12]) + (", ..." if len(self.label_names) > 12 else "")
                raise self.error(
                    f"`class_weights` has the label {label!r}, which is not in label_names ({names})."
                    + (lab.close(str(label), self.label_names) or " Remove it.")
                )
            named[self.label_names[table[label]]] = float(value)
        if not any(named.get(name, 1.0) for name in self.label_names):
            raise self.error("`class_weights` are 0 for every label, so nothing would train. Give one above 0.")
        self.class_weights = named


@dataclass(kw_only=True)
class SoftLabels(LabelLoss):
    """A task whose labels may be a probability per class.

    Args:
        soft_labels: whether the label column contains lists of probabilities, one per class in the order of
            ``label_names``, which sum to 1. Metrics compare with the most probable class.
    """

    soft_labels: bool | None = None

    def _check_loss(self) -> None:
        """See :meth:`LabelLoss._check_loss`; soft labels are those of one label per row."""
        if self.soft_labels and hasattr(self, "problem_type"):
            self.problem_type: str | None = self.problem_type or _SINGLE
            if self.problem_type != _SINGLE:
                raise self.error(
                    f"`soft_labels` applies to one label per row, but problem_type is {self.problem_type}. Remove one "
                    "of them."
                )
        super()._check_loss()

    def _check_soft(self, data: Sequence[Dataset], column: str) -> None:
        """Check that a column contains lists of numbers.

        Raises:
            ValueError: it does not.
        """
        for dataset in data:
            found, depth = lab.kind(dataset, column)
            if found != "nothing" and (depth != 1 or found not in ("float", "number")):
                raise self.error(
                    f"column '{column}' contains {lab.describe(found, depth)}, but soft_labels need a list with a "
                    "probability per class. Set another label_column, or remove soft_labels."
                )

    def _with_names_of_soft(self: Soft, data: Sequence[Dataset], column: str) -> Soft:
        """A copy with names for as many classes as the first row of the data has probabilities."""
        lists = label_sets.lists_of(data, column)
        return self.named([f"LABEL_{number}" for number in range(len(lab.arrow(lists[0], column)[0]) if lists else 0)])

    def _soft(self, value: object, _: Table, where: str) -> list[float]:
        """The probabilities of a row.

        Raises:
            ValueError: they are not one per class, or do not sum to 1; the message names the row.
        """
        classes = len(self.label_names or [])
        given: Cells = value if isinstance(value, list) else [value]
        if len(given) != classes or not all(_is_number(one) and 0 <= one <= 1 for one in given):
            raise self.error(
                f"{where} should have {classes} probabilities in column '{self.target_column}', one from 0 to 1 for "
                f"each of label_names. Found {value!r}. Fix the row."
            )
        if abs(sum(given) - 1) > _SUM:
            raise self.error(
                f"{where} has probabilities in column '{self.target_column}' that should sum to 1. Found {value!r}, "
                f"whose sum is {sum(given):g}. Fix the row."
            )
        return [float(one) for one in given]


def balanced_weights(counts: Iterable[float], rows: float, *, sets: bool = False) -> list[float]:
    r"""Weights of classes by their counts.

    With n labels of which :math:`n_c` are of class c, and C classes that occur, :math:`w_c = n / (C n_c)`, as
    scikit-learn's ``compute_class_weight("balanced")`` has it. For label sets, the weight of a positive is the number
    of rows without the class divided by the number of rows with it. A class without a training label weighs 1.

    Args:
        counts: labels of each class.
        rows: labels of all classes; for label sets, the number of rows.
        sets: whether labels are sets.
    """
    counts = list(counts)
    if sets:
        return [(rows - count) / count if 0 < count < rows else 1.0 for count in counts]
    occur = sum(count > 0 for count in counts)
    return [rows / (occur * count) if count > 0 else 1.0 for count in counts]
