"""Which tasks to train together, from how much the steps of each lower the losses of the others.

Legend: K tasks, S measured steps. Affinities are (K, K): row i is the task that makes the step, column j the one whose
loss falls; NaN where nothing was measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...hub.beside import SURE

MOST = 8  # tasks up to which every grouping is compared; 8 tasks have 4,140

Groups = list[list[int]]


@dataclass(frozen=True)
class Grouping:
    """The best grouping for a number of models.

    Args:
        groups: tasks by number, each in one group.
        affinity: mean over tasks of the affinity onto each, see :func:`mean_affinity`.
        gain: what that is above one model for all.
        error: standard error of the gain over the measured steps.
    """

    groups: Groups
    affinity: float
    gain: float
    error: float


@dataclass(frozen=True)
class Suggestion:
    """What to do about it.

    Args:
        grouping: the one to take.
        harmed: numbers of the tasks whose loss the steps of all the others raise, beyond the noise.
        split: the best grouping into several models, whether it is the one to take or not.
    """

    grouping: Grouping
    harmed: list[int]
    split: Grouping


def mean_affinity(groups: Groups, affinity_KK: np.ndarray) -> float:
    """Mean over tasks of the mean affinity onto each of the other tasks in its group; 0 onto a task that is alone."""
    return float(np.mean([onto for group in groups for onto in _onto(group, affinity_KK)]))


def _onto(group: Sequence[int], affinity_KK: np.ndarray) -> list[float]:
    if len(group) == 1:
        return [0.0]
    own = affinity_KK[np.ix_(group, group)]
    return ((own.sum(0) - own.diagonal()) / (len(group) - 1)).tolist()


def partitions(count: int, groups: int) -> Iterator[Groups]:
    """All ways to put so many tasks into so many groups."""

    def place(task: int, made: Groups) -> Iterator[Groups]:
        if len(made) + count - task < groups:
            return
        if task == count:
            yield [list(group) for group in made]
            return
        for group in made:
            group.append(task)
            yield from place(task + 1, made)
            group.pop()
        if len(made) < groups:
            made.append([task])
            yield from place(task + 1, made)
            made.pop()

    yield from place(0, [])


def best_groups(affinity_KK: np.ndarray) -> dict[int, Groups]:
    """By number of models, the grouping with the highest mean affinity; up to 8 tasks of all there are.

    With more tasks groups are merged, the two at a time that leave the mean affinity highest, which need not find the
    best.
    """
    count = len(affinity_KK)
    if count <= MOST:
        return {
            models: max(partitions(count, models), key=lambda groups: mean_affinity(groups, affinity_KK))
            for models in range(1, count + 1)
        }
    groups: Groups = [[task] for task in range(count)]
    found = {count: groups}
    while len(groups) > 1:
        groups = _merged(groups, affinity_KK)
        found[len(groups)] = groups
    return dict(sorted(found.items()))


def _merged(groups: Groups, affinity_KK: np.ndarray) -> Groups:
    """One group fewer: the two are made one that leave the mean affinity highest."""
    totals = [sum(_onto(group, affinity_KK)) for group in groups]

    def gain(pair: tuple[int, int]) -> float:
        one, other = pair
        return sum(_onto(groups[one] + groups[other], affinity_KK)) - totals[one] - totals[other]

    pair = max(((one, other) for other in range(len(groups)) for one in range(other)), key=gain)
    rest = [members for number, members in enumerate(groups) if number not in pair]
    return sorted([*rest, sorted(groups[pair[0]] + groups[pair[1]])])


def group(affinity_SKK: np.ndarray) -> list[Grouping]:
    """The best grouping for every number of models, 1 to K, with its gain over one model and the noise of that.

    Efficiently Identifying Task Groupings for Multi-Task Learning (NeurIPS 2021), https://arxiv.org/abs/2109.04617,
    section 3.3: the grouping is best whose mean affinity onto the tasks is highest, that onto a task being the mean
    over the others of its group.

    .. note::
        Groups do not overlap: a task trains in the model that serves it only. The authors' code also lets tasks train
        in models that do not serve them, and takes a task alone only where it has to (its affinity is -1e6 there);
        here that is 0, neither help nor harm. The standard error is the jackknife's over the measured steps, as if they
        did not depend on each other, for a grouping that is chosen from the same steps: it is rather too small.

    Args:
        affinity_SKK: of S measured steps; a pair of tasks has to be in two of them at least.

    Raises:
        ValueError: a pair was measured less often.
    """
    mean_KK = mean_over_steps(affinity_SKK)
    without = leave_one_out(affinity_SKK)
    pairs = ~np.eye(len(mean_KK), dtype=bool)
    if len(affinity_SKK) < 2 or np.isnan(mean_KK[pairs]).any() or np.isnan(without[:, pairs]).any():
        raise ValueError(
            "Two tasks were in fewer than two measured steps together. Measure more steps, or larger ones."
        )
    one = [list(range(len(mean_KK)))]
    found = []
    for groups in best_groups(mean_KK).values():
        gain = mean_affinity(groups, mean_KK) - mean_affinity(one, mean_KK)
        gains_S = [mean_affinity(groups, part) - mean_affinity(one, part) for part in without]
        found.append(Grouping(groups, mean_affinity(groups, mean_KK), gain, jackknife_error(gains_S)))
    return found


def suggest(affinity_SKK: np.ndarray, groupings: Sequence[Grouping]) -> Suggestion:
    """One model for all, unless the steps of the others harm a task and a split helps, both beyond the noise.

    That is two standard errors. Of splits that help the one with the fewest models is taken whose mean affinity is
    within one standard error of the best.
    """
    mean_KK, without = mean_over_steps(affinity_SKK), leave_one_out(affinity_SKK)
    everyone = list(range(len(mean_KK)))
    onto_K = np.array(_onto(everyone, mean_KK))
    onto_SK = np.array([_onto(everyone, part) for part in without])
    errors_K = [jackknife_error(onto_SK[:, task]) for task in everyone]
    harmed = [task for task in everyone if onto_K[task] < -SURE * errors_K[task]]
    one, *splits = groupings
    best = max(splits, key=lambda grouping: grouping.affinity)
    helping = [grouping for grouping in splits if grouping.gain > SURE * grouping.error]
    if not harmed or not helping:
        return Suggestion(one, harmed, best)
    best = max(helping, key=lambda grouping: grouping.affinity)
    chosen = next(grouping for grouping in helping if grouping.affinity >= best.affinity - best.error)
    return Suggestion(chosen, harmed, best)


def mean_over_steps(values_S: np.ndarray) -> np.ndarray:
    """The mean of what was measured, NaN where nothing was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a mean of nothing
        return np.nanmean(values_S, axis=0)


def error_over_steps(values_S: np.ndarray) -> np.ndarray:
    """The standard error of that mean, NaN where it was measured less than twice."""
    count = np.isfinite(values_S).sum(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanstd(values_S, axis=0, ddof=1) / np.sqrt(count)


def leave_one_out(values_SKK: np.ndarray) -> np.ndarray:
    """The means without each of the steps, (S, K, K)."""
    return np.array([mean_over_steps(np.delete(values_SKK, step, axis=0)) for step in range(len(values_SKK))])


def jackknife_error(without_S: Sequence[float] | np.ndarray) -> float:
    r"""The standard error of a statistic from its values without each of the steps:
    :math:`\sqrt{\tfrac{S - 1}{S} \sum_s (v_s - \bar v)^2}`.
    """
    values_S = np.asarray(without_S)
    return float(np.sqrt((len(values_S) - 1) / len(values_S) * np.square(values_S - values_S.mean()).sum()))
