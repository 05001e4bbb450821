"""The part of a task that measures its answers: the option ``metrics``, and what a type computes."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ..modeling.config import close_match
from .directions import rises
from .measures import INSTEAD

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedTokenizerBase

    from .columns import Cells, Ragged, References

logger = logging.get_logger(__name__)

# Arguments of tasks that evaluations read, and encoded rows do not depend on.
MEASURING = frozenset({"metrics", "threshold", "calibration", "fitted"})


@dataclass(kw_only=True)
class Measured(ABC):
    """The base class of :class:`Task`: its name, and its metrics.

    A type computes its metrics in :meth:`measure`, which a type outside the package may also name ``metrics``: on an
    object, ``metrics`` is the option, and on a class the method.
    """

    name: str | None = dataclasses.field(default=None, repr=False)
    metrics: list[str] | None = None
    slice_columns: list[str] | None = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Accept a method ``metrics``, and reset the names of a type whose metrics differ from those of its base."""
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if callable(own.get("metrics")):
            cls.measure = own["metrics"]  # type: ignore[method-assign]
        elif "measure" in own:
            cls.metrics = own["measure"]
        if {"measure", "metrics", "score", "text_metrics"} & own.keys():
            for names in {"metric_names", "possible_metrics"} - own.keys():
                setattr(cls, names, vars(Measured)[names])

    def __post_init__(self) -> None:
        self.check_metrics()

    def check_metrics(self) -> None:
        """Check that the metrics are some that the type can have, as far as its labels are known.

        Raises:
            ValueError: they are not, or the first one falls when the model gets better.
        """
        if self.metrics is None:
            return
        if isinstance(self.metrics, str) or not all(isinstance(name, str) for name in self.metrics):
            raise self.error(f"`metrics` should be a list of names. Found `metrics = {self.metrics!r}`.")
        self.metrics = list(self.metrics)
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise self.error(f"`metrics` should be different names, one or more. Found `metrics = {self.metrics!r}`.")
        possible = list(self.possible_metrics or self.metrics)
        for name in self.metrics:
            if name not in possible:
                raise self.error(
                    f"`metrics` has '{name}', and this task can have {', '.join(possible)}."
                    + (f" Use '{INSTEAD[name]}'." if INSTEAD.get(name) in possible else close_match(name, possible))
                )
        first = self.metrics[0]
        if rises(first) is False:
            grows = next((name for name in (*self.metrics, *possible) if rises(name)), "accuracy")
            raise self.error(
                f"`metrics` has '{first}' first, which makes it the primary metric, and a primary metric grows when "
                f"the model gets better. Put another one first, such as {grows}."
            )

    def error(self, sentence: str) -> ValueError:
        """An error whose message begins with the name of the task."""
        return ValueError(f"Task '{self.name}': {sentence}" if self.name else f"{type(self).__name__}: {sentence}")

    def tell(self, sentence: str) -> None:
        """Log a warning that begins with the name of the task."""
        told: list[str] | None = vars(self).get("_told")
        if told is None:
            logger.warning(f"Task '{self.name}': {sentence}")
        else:
            told.append(sentence)

    @contextmanager
    def listening(self) -> Iterator[list[str]]:
        """Collect the sentences of :meth:`tell` in a list, in place of the log."""
        told = vars(self)["_told"] = []
        try:
            yield told
        finally:
            del vars(self)["_told"]

    @property
    def metric_names(self) -> list[str] | None:
        """Names of the metrics of :meth:`score`, the primary metric first; None if they are not known."""
        return None

    @property
    def possible_metrics(self) -> Collection[str] | None:
        """Names that the option ``metrics`` may have; None if they are not known."""
        return self.metric_names

    @property
    def reported_metrics(self) -> list[str] | None:
        """Names of the metrics that an evaluation gives: those of the option, or of the type, and further ones."""
        names = self.metrics or self.metric_names
        return None if names is None else [*names, *self.extra_metrics]

    @property
    def measured_names(self) -> list[str]:
        """Names of the metrics that :meth:`measure` gives: all of them, unless :meth:`score` adds some."""
        return list(self.metrics or self.metric_names or [])

    @property
    def extra_metrics(self) -> list[str]:
        """Names of metrics that other options than ``metrics`` add."""
        return []

    @property
    def fits(self) -> list[str]:
        """The options whose values are fitted on validation rows, see :meth:`fit`."""
        return []

    def fit(self, logits: Ragged, labels: Ragged) -> None:  # noqa: B027 - most types have none
        """Fit the values of :attr:`fits` to predictions and labels of validation rows."""

    def extra(self, logits: Ragged, labels: Ragged) -> dict[str, float]:  # noqa: ARG002
        """The values of :attr:`extra_metrics` that follow from predictions and labels."""
        return {}

    def reduced(self, predictions: torch.Tensor) -> torch.Tensor:
        """The part of the predictions of a batch that :meth:`score` needs: all of them by default."""
        return predictions

    def score(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,
        *,
        unseen: Cells,
        references: References,  # noqa: ARG002
        loss: float,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> dict[str, float]:
        """Metrics of an evaluation, see :meth:`measure`; types whose metrics need more than tensors override this.

        Args:
            predictions: those of the head, or the tokens that a task has generated; padded with -100.
            labels: as collated, padded with -100.
            unseen: labels that are numbered after the known ones.
            references: the labels as encoded, in the order of the predictions.
            loss: mean over all items.
            tokenizer: of the backbone.
        """
        return self.measure(predictions, labels, unseen)

    def details(
        self,
        predictions: np.ndarray,  # noqa: ARG002
        labels: np.ndarray,  # noqa: ARG002
        *,
        unseen: Cells,  # noqa: ARG002
        references: References,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> dict[str, Any]:
        """What a report of an evaluation has beside the metrics, as plain values; nothing by default.

        The arguments are those of :meth:`score`. The pages of a report show ``classes``, ``confusion_matrix``,
        ``calibration`` and ``errors``, see :mod:`hf_multitask.tasks.reports`.
        """
        return {}

    def extra_details(self, logits: Ragged, labels: Ragged) -> dict[str, Any]:  # noqa: ARG002
        """Details that follow from predictions and labels, whatever is answered."""
        return {}

    @abstractmethod
    def measure(self, predictions: np.ndarray, labels: np.ndarray, unseen: Cells) -> dict[str, float]:
        """Metrics of logits and labels; the first is the primary metric, which increases to 1 for a better model."""

    def chosen(self, values: Mapping[str, float]) -> dict[str, float]:
        """The metrics of the option, in its order, of those that :meth:`score` gives; all of them without the option.

        Raises:
            ValueError: one is not among them.
        """
        for name in self.metrics or []:
            if name not in values:
                raise self.error(
                    f"`metrics` has '{name}', and its score gives {', '.join(values) or 'none'}."
                    + (close_match(name, list(values)) or " Name one of those.")
                )
        return {name: values[name] for name in [*self.metrics, *self.extra_metrics]} if self.metrics else dict(values)


Measured.metrics = Measured.measure  # type: ignore[assignment]
