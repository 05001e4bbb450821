"""What a diagnosis found, as plain values for its report, and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...hub.beside import SURE
from ..plain import Saved, State
from .affinity import Measured, by_step
from .grouping import MOST, Groups, Suggestion, error_over_steps, group, mean_over_steps, suggest

_UNEVEN = 5.0  # times as long as another, from which on a gradient is reported


def gradients_report(measured: Sequence[Measured], tasks: Sequence[str]) -> State:
    """Mean cosines and norms over the measured steps, and the share of them in which a pair was in conflict."""
    cosines_SKK = by_step(measured, tasks, "cosines")
    counts_KK = np.isfinite(cosines_SKK).sum(0)
    with np.errstate(invalid="ignore"):
        conflicts_KK = (cosines_SKK < 0).sum(0) / np.where(counts_KK, counts_KK, np.nan)
    norms_K = mean_over_steps(by_step(measured, tasks, "norms"))
    return {
        "mean": _table(mean_over_steps(cosines_SKK), tasks),
        "standard_error": _table(error_over_steps(cosines_SKK), tasks),
        "conflicts": _table(conflicts_KK, tasks),
        "steps": _table(counts_KK, tasks),
        "norms": {name: _number(value) for name, value in zip(tasks, norms_K.tolist(), strict=True)},
    }


def affinity_report(measured: Sequence[Measured], tasks: Sequence[str]) -> State:
    """Mean affinity of every task's step onto every task's loss, and a power of ten to show it in."""
    affinity_SKK = by_step(measured, tasks, "affinity")
    mean_KK = mean_over_steps(affinity_SKK)
    return {
        "unit": _unit(mean_KK),
        "mean": _table(mean_KK, tasks),
        "standard_error": _table(error_over_steps(affinity_SKK), tasks),
        "steps": _table(np.isfinite(affinity_SKK).sum(0), tasks),
    }


def groups_report(measured: Sequence[Measured], tasks: Sequence[str], branches: str = "", layers: int = 0) -> State:
    """The best grouping for every number of models, and what is suggested.

    Args:
        measured: the steps.
        tasks: their names.
        branches: those of the model that was measured, in words; nothing without.
        layers: of each.
    """
    affinity_SKK = by_step(measured, tasks, "affinity")
    affinity_SKK = affinity_SKK[np.isfinite(affinity_SKK).any((1, 2))]
    groupings = group(affinity_SKK)
    suggestion = suggest(affinity_SKK, groupings)
    return {
        "search": "all groupings" if len(tasks) <= MOST else "merged greedily",
        "by_models": [
            {
                "models": len(one.groups),
                "groups": [[tasks[number] for number in members] for members in one.groups],
                "affinity": one.affinity,
                "gain": one.gain,
                "standard_error": one.error,
            }
            for one in groupings
        ],
        "suggestion": {
            "groups": [[tasks[number] for number in members] for members in suggestion.grouping.groups],
            "harmed": [tasks[number] for number in suggestion.harmed],
            "words": suggested_in_words(suggestion, tasks, len(affinity_SKK), branches, layers),
        },
    }


def compared_in_words(single: Saved) -> str:
    """Which tasks came out better together and which alone, beyond the noise of their rows."""
    both = [name for name in single["together"] if name in single["alone"]]
    gains = {name: single["together"][name] - single["alone"][name] for name in both}
    better = [name for name in both if gains[name] > SURE * single["noise"][name]]
    worse = [name for name in both if -gains[name] > SURE * single["noise"][name]]
    parts = [
        f"{words} for " + ", ".join(f"{name} ({abs(gains[name]):.3f} {single['metric'][name]})" for name in names)
        for words, names in (("together", better), ("alone", worse))
        if names
    ]
    if not parts:
        return "Measured with one seed, no task differs together and alone beyond the noise of its validation rows."
    text = f"Measured with one seed, the validation metric is higher {' and '.join(parts)}."
    return f"{text} It is more reliable than a forecast; check it with another --seed." if worse else text


def uneven_in_words(norms: Mapping[str, float | None]) -> str:
    """A task whose gradient dominates another's, if there is one."""
    known = {name: norm for name, norm in norms.items() if norm}
    longest, shortest = max(known, key=known.__getitem__, default=""), min(known, key=known.__getitem__, default="")
    if not known or known[longest] < _UNEVEN * known[shortest]:
        return ""
    return (
        f"The gradient of {longest} is {known[longest] / known[shortest]:.0f} times as long as that of {shortest}: "
        "weigh it down with task_weights, or try aggregation='config' or balancing='gradnorm'."
    )


def suggested_in_words(
    suggestion: Suggestion, tasks: Sequence[str], steps: int, branches: str = "", layers: int = 0
) -> str:
    """A suggestion in a sentence or two.

    Args:
        suggestion: of the tasks.
        tasks: their names.
        steps: measured.
        branches: see :func:`groups_report`.
        layers: of each.
    """
    text = _suggested(suggestion, tasks, steps, f", branch_layers: {layers}" if branches else "")
    if not branches:
        return text
    return (
        f"{text} The measured model has branches of {layers} layers, {branches}: this is about the layers below them."
    )


def _suggested(suggestion: Suggestion, tasks: Sequence[str], steps: int, layers: str) -> str:
    harmed = _listed([tasks[number] for number in suggestion.harmed])
    split, grouping = suggestion.split, suggestion.grouping
    sure = split.gain > SURE * split.error
    if len(grouping.groups) > 1:
        return (
            f"Train {len(grouping.groups)} models, {_named(grouping.groups, tasks)}: in one model the steps of the "
            f"other tasks raise the loss of {harmed}, and in these the mean affinity onto a task is higher, by "
            f"{grouping.gain:.2g} ± {grouping.error:.1g}. {_branched(grouping.groups, tasks, layers)}"
        )
    if suggestion.harmed:
        return (
            f"Train one model for all tasks: the steps of the others raise the loss of {harmed}, but no split is "
            f"better beyond the noise of {steps} measured steps (the best, {_named(split.groups, tasks)}: "
            f"{split.gain:+.2g} ± {split.error:.1g}). {_branched(split.groups, tasks, layers)}"
        )
    text = (
        "Train one model for all tasks: none loses by the steps of the others beyond the noise of "
        f"{steps} measured steps."
    )
    if sure:
        text += (
            f" If there is room for {len(split.groups)} models, {_named(split.groups, tasks)} would gain most by each "
            f"other. {_branched(split.groups, tasks, layers)}"
        )
    return text


def _branched(groups: Groups, tasks: Sequence[str], layers: str) -> str:
    """The groups as branches of one model, as a recipe has them."""
    names = (f"group_{number}: [{', '.join(tasks[one] for one in own)}]" for number, own in enumerate(groups, 1))
    return f"In one model, branches keep them apart: model: {{branches: {{{', '.join(names)}}}{layers}}}."


def _named(groups: Groups, tasks: Sequence[str]) -> str:
    return " and ".join("[" + ", ".join(tasks[number] for number in group) + "]" for group in groups)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def _table(values_KK: np.ndarray, tasks: Sequence[str]) -> dict[str, dict[str, float | None]]:
    return {
        one: {other: _number(value) for other, value in zip(tasks, row, strict=True)}
        for one, row in zip(tasks, values_KK.tolist(), strict=True)
    }


def _number(value: float) -> float | None:
    """A number that JSON can hold."""
    return value if math.isfinite(value) else None


def _unit(values_KK: np.ndarray) -> float:
    """The power of ten of which the largest value for a pair has one digit before the point."""
    pairs = np.abs(values_KK[~np.eye(len(values_KK), dtype=bool)])
    most = max(pairs[np.isfinite(pairs)], default=0.0)
    return 10.0 ** math.floor(math.log10(most)) if most else 1.0
