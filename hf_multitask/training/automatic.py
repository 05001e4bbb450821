"""The settings that ``auto`` chooses before training, from the tasks of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..modeling import MultiTaskModel
    from .arguments import MultiTaskTrainingArguments

AUTO = "auto"
_NONE = "none"


def settled(method: str) -> str:
    """The name of a balancing or an aggregation, chosen where it is ``auto``.

    It is ``none``: in the tables of ``docs/balancing.md`` no method was better than the plain sum of the losses on all
    mixtures, as in In Defense of the Unitary Scalarization for Deep Multi-Task Learning (NeurIPS 2022),
    https://arxiv.org/abs/2201.04122.
    """
    return _NONE if method == AUTO else method


def check_kwargs(args: MultiTaskTrainingArguments) -> None:
    """Check that no arguments are given for a method that is still to be chosen.

    Raises:
        ValueError: some are.
    """
    for name in ("balancing", "aggregation"):
        if getattr(args, name) == AUTO and getattr(args, f"{name}_kwargs"):
            raise ValueError(
                f"Parameter `{name}_kwargs` is for a method, and `{name} = 'auto'` names none. Give `{name}` the name "
                "of the method."
            )


def describe_automatic(args: MultiTaskTrainingArguments, model: MultiTaskModel) -> str:
    """What was chosen, and why; nothing where the user named everything, or where there is one task."""
    chosen = [name for name in ("balancing", "aggregation") if getattr(args, name) == AUTO]
    sentences = []
    if len(model.config.tasks) > 1:
        if model.branching_reason:
            sentences.append(model.branching_reason)
        if chosen:
            sentences.append(
                f"{' and '.join(f'{name} none' for name in chosen)}, as no method was better than the plain sum of the "
                "losses on all mixtures that were compared (docs/balancing.md)"
            )
    return f"Automatic: {'; '.join(sentences)}." if sentences else ""
