"""What is fitted beside the weights, on validation rows: thresholds of labels, and the temperature of logits.

Legend: N rows of one task, C classes.
"""

import math
from typing import TypeGuard

import torch

from .aliases import Settings, Values
from .config import close_match

TUNE, TEMPERATURE = "tune", "temperature"
DECISIONS = ("threshold", "calibration", "fitted")  # the options of a task that its answers depend on
SINGLE, SETS = "single_label_classification", "multi_label_classification"


def check_decisions(task: Settings) -> None:
    """Check the options that the answers of a task depend on, which anyone can edit in a saved configuration.

    Raises:
        ValueError: one of them is not usable.
    """
    if problem := decision_problem(task):
        raise ValueError(f"Task '{task.get('name')}': {problem}")


def decision_problem(task: Settings) -> str | None:
    """What is wrong with the options that the answers of a task depend on, as a sentence; None if nothing is."""
    threshold, calibration, values = (task.get(option) for option in DECISIONS)
    if calibration not in (None, TEMPERATURE):
        found = f"Found `calibration = {calibration!r}`."
        return f"`calibration` should be '{TEMPERATURE}'. {found}" + close_match(str(calibration), [TEMPERATURE])
    if threshold not in (None, TUNE) and not (_is_number(threshold) and 0 < threshold < 1):
        found = f"Found `threshold = {threshold!r}`." + close_match(str(threshold), [TUNE])
        return f"`threshold` should be a probability between 0 and 1, or '{TUNE}'. {found}"
    for option in (name for name in DECISIONS[:2] if task.get(name) is not None):
        if task.get("problem_type") == "regression":
            return f"`{option}` is for classes, and problem_type is regression. Remove `{option}`."
    classes = len(task.get("label_names") or [])
    if threshold is not None and task.get("problem_type") == SINGLE and classes not in (0, 2):
        return f"`threshold` is for two classes or label sets, and there are {classes} classes. Remove `threshold`."
    if values is not None and not _is_usable(values, task):
        return (
            "`fitted` should have a temperature above 0, and a probability as the threshold of labels of the task. "
            f"Found `fitted = {values!r}`. Remove it and evaluate again, or use the configuration as it was saved."
        )
    return None


def _is_usable(values: object, task: Settings) -> bool:
    if not isinstance(values, dict):
        return False
    temperature, thresholds = values.get("temperature", 1), values.get("threshold", {})
    return (
        (_is_number(temperature) and 0 < temperature < math.inf)
        and isinstance(thresholds, dict)
        and all(name in (task.get("label_names") or []) for name in thresholds)
        and all(_is_number(least) and 0 <= least <= 1 for least in thresholds.values())
    )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def fitted_values(task: Settings) -> Values:
    """What was fitted for a task; empty where nothing was."""
    return task.get("fitted") or {}


def temperature_of(task: Settings) -> float | None:
    """What the logits of a task are divided by; None where they are not."""
    return fitted_values(task).get("temperature") if task.get("calibration") == TEMPERATURE else None


def thresholds_of(task: Settings) -> dict[str, float] | None:
    """By label, the probability from which it is answered: of every label of a set, of the second of two classes.

    None for a task without the option ``threshold``. Where it is to be tuned and is not yet, every label has 0.5.
    """
    given, names = task.get("threshold"), task.get("label_names") or []
    if given is None:
        return None
    known = fitted_values(task).get("threshold") if given == TUNE else None
    default = 0.5 if given == TUNE else float(given)
    return {
        name: (known or {}).get(name, default) for name in (names if task.get("problem_type") == SETS else names[1:])
    }


def scaled(task: Settings, logits: torch.Tensor) -> torch.Tensor:
    """Logits divided by the temperature of a task, where it has one."""
    temperature = temperature_of(task)
    return logits if temperature is None else logits / temperature


def answered(task: Settings, logits_NC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (N, C) of classes or labels, and the answers: classes (N,), or which labels a set has, (N, C)."""
    logits_NC = scaled(task, logits_NC)
    thresholds = thresholds_of(task)
    least = None if thresholds is None else torch.tensor(list(thresholds.values()), dtype=torch.float64)
    if task.get("problem_type") == SETS:
        scores_NC = logits_NC.sigmoid()
        return scores_NC, logits_NC > 0 if least is None else scores_NC.double() >= least
    scores_NC = logits_NC.softmax(-1)
    return scores_NC, scores_NC.argmax(-1) if least is None else (scores_NC[:, 1].double() >= least).long()
