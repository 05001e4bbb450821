"""What a trainer's log says of tasks: their losses, their metrics, and the figures of the model that is saved."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from .records import MEAN_COSINE, Log, Orders, average_of, by_task, is_end, pairs, prefix_of, whole

SPLITS = {"eval": "validation", "test": "test"}
_SET = "eval_"  # before the name of a further evaluation set
Points = list[tuple[int, float]]  # optimizer steps, and what was measured there
Cosines = dict[tuple[str, str], float]  # by pair of tasks


@dataclass(frozen=True)
class Result:
    """One figure of an evaluation; ``task`` is None for the average of the primary metrics."""

    split: str
    task: str | None
    metric: str
    value: float
    step: int


def split_of(prefix: str) -> str | None:
    """The split, or the further evaluation set of validation, for a prefix of metrics; None if it is of neither."""
    if prefix in SPLITS:
        return SPLITS[prefix]
    return prefix.removeprefix(_SET) if prefix.startswith(_SET) else None


def in_order(splits: Iterable[str]) -> list[str]:
    """Splits in the order of tables: validation, its further sets, test."""
    return sorted(dict.fromkeys(splits), key=lambda split: {"validation": 0, "test": 2}.get(split, 1))


def _evaluations(history: Sequence[Log], best: int | None) -> Iterator[tuple[str, Log]]:
    """Splits and log entries of the evaluations that tell of the saved model, the later ones last.

    Args:
        history: the trainer's log.
        best: the step whose weights were loaded at the end of training; None where the last ones are saved.
    """
    end = _end(history)
    for number, entry in enumerate(history):
        prefix = prefix_of(entry)
        split = None if prefix is None else split_of(prefix)
        if split is not None and (best is None or number > end or entry.get("step") == best):
            yield split, entry


def splits_of_saved(history: Sequence[Log], best: int | None) -> set[str]:
    """The splits whose last evaluation tells of the saved model.

    Args:
        history: the trainer's log.
        best: see :func:`_evaluations`.
    """
    last = {split_of(prefix): id(entry) for entry in history if (prefix := prefix_of(entry)) is not None}
    telling = {id(entry) for _, entry in _evaluations(history, best)}
    return {split for split, entry in last.items() if split is not None and entry in telling}


def _end(history: Sequence[Log]) -> int:
    """Where the log's entry of the end of training stands."""
    ends = [number for number, entry in enumerate(history) if is_end(entry)]
    return ends[-1] if ends else len(history)


def results(
    history: Sequence[Log],
    tasks: Collection[str],
    metrics: Orders | None = None,
    *,
    best: int | None = None,
) -> list[Result]:
    """The last figures of each split that were measured on the saved model, task by task, without those of slices.

    Args:
        history: the trainer's log.
        tasks: their names.
        metrics: by task, the names of its metrics in their order: a checkpoint's log has them by the alphabet. That of
            the log where a task is not named.
        best: the step whose weights were loaded at the end of training; None where the last ones are saved.
    """
    found: dict[tuple[str, str | None, str], Result] = {}
    for split, entry in _evaluations(history, best):
        step = entry.get("step", 0) if best is None else best
        for task, own in by_task(entry, tasks, metrics)[0].items():
            metrics_of_all = [metric for metric in own if whole(metric) == metric]
            found |= {(split, task, one): Result(split, task, one, own[one], step) for one in metrics_of_all}
        found[split, None, "average"] = Result(split, None, "average", average_of(entry), step)
    place = {task: number for number, task in enumerate([*tasks, None])}
    orders = {task: {name: number for number, name in enumerate(names)} for task, names in (metrics or {}).items()}

    def where(result: Result) -> tuple[int, int]:
        order = orders.get(str(result.task), {})
        return place[result.task], order.get(result.metric, len(order))

    return sorted(found.values(), key=where)


def primary_metrics(found: Sequence[Result]) -> dict[str, str]:
    """By task, the name of its primary metric, the first one that is no loss."""
    primary: dict[str, str] = {}
    for result in found:
        if result.task is not None and result.metric != "loss":
            primary.setdefault(result.task, result.metric)
    return primary


def curves(
    history: Sequence[Log], tasks: Collection[str], metrics: Orders | None = None
) -> tuple[dict[str, Points], dict[str, tuple[str, Points]]]:
    """By task, the losses of training, and the primary metric's name and values on the validation data.

    What was measured after the end of training is left out: it may be of other weights than the last step's.

    Args:
        history: the trainer's log.
        tasks: their names.
        metrics: see :func:`results`.
    """
    losses: dict[str, Points] = {}
    orders = {task: [name for name in own if name != "loss"] for task, own in (metrics or {}).items()}
    primary: dict[str, tuple[str, Points]] = {task: (own[0], []) for task, own in orders.items() if own}
    for entry in history[: _end(history)]:
        step = entry.get("step", 0)
        if "loss" in entry:
            for task, found in by_task(entry, tasks)[0].items():
                if "loss" in found:
                    losses.setdefault(task, []).append((step, found["loss"]))
        elif prefix_of(entry) == "eval":
            for task, found in by_task(entry, tasks, metrics)[0].items():
                for metric, value in found.items():
                    if metric != "loss" and primary.setdefault(task, (metric, []))[0] == metric:
                        primary[task][1].append((step, value))
    measured = {task: primary[task] for task in tasks if task in primary and primary[task][1]}
    return {task: losses[task] for task in tasks if task in losses}, measured


def gradients(history: Sequence[Log], tasks: Collection[str]) -> tuple[dict[str, Points], Cosines]:
    """By task, the norms of its gradients of the shared parameters, and by pair the last cosine between theirs.

    Of more tasks than are logged pair by pair there are no cosines.
    """
    norms: dict[str, Points] = {}
    cosines: Cosines = {}
    for entry in history[: _end(history)]:
        if "loss" not in entry:
            continue
        if MEAN_COSINE not in entry:
            cosines |= pairs(entry)
        for task, found in by_task(entry, tasks)[0].items():
            if "grad_norm" in found:
                norms.setdefault(task, []).append((entry.get("step", 0), found["grad_norm"]))
    return {name: norms[name] for name in tasks if name in norms}, cosines
