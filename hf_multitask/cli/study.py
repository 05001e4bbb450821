"""The trials of a hyperparameter search in a file, from which an interrupted search continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

JOURNAL = "trials.log"
_NAME = "hf_multitask"
_SEARCH, _FAILED, _AGAIN = "search", "failed", "again"  # attributes of the study


@dataclass(frozen=True)
class Found:
    """A trial that has ended.

    Args:
        number: from 1.
        value: of its objective; None if it failed.
        params: what it was trained with.
        seconds: that it took.
    """

    number: int
    value: float | None
    params: dict[str, Any]
    seconds: float


class Study:
    """The trials of a search, which are kept in ``trials.log`` in a folder.

    Args:
        folder: of the search.
        seed: of the proposals.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # the command tells what fails
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        self._study = optuna.create_study(
            storage=self._storage, study_name=_NAME, direction="maximize", load_if_exists=True
        )
        # With one seed for both, a continued search would propose the trials again that it has.
        self._sampler = optuna.samplers.TPESampler(seed=seed + len(self._study.trials))

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``hyperparameter_search`` for another trial of this study."""
        return {
            "storage": self._storage,
            "study_name": _NAME,
            "load_if_exists": True,
            "sampler": self._sampler,
            "pruner": optuna.pruners.NopPruner(),
        }

    def check(self, search: Mapping[str, object]) -> None:
        """Check that the trials are of this search.

        Raises:
            ValueError: they are of another.
        """
        now = json.loads(json.dumps(search, default=str))
        then = self._study.user_attrs.get(_SEARCH)
        if then is None:
            self._study.set_user_attr(_SEARCH, now)
            return
        for name in {**then, **now}:
            if then.get(name) != now.get(name):
                raise ValueError(
                    f"The {name} of this search and of the one in '{self.folder}' differ, so their trials cannot be "
                    f"compared. Set another output_dir, or remove '{self.folder / JOURNAL}' to start again."
                )

    def resume(self) -> int:
        """Let trials that were interrupted run again, with the same values; the number of those that have ended."""
        known = set(self._numbers(_FAILED)) | set(self._numbers(_AGAIN))
        for trial in self._study.trials:
            if trial.state in (TrialState.RUNNING, TrialState.FAIL) and trial.number not in known:
                if trial.state == TrialState.RUNNING:
                    self._study.tell(trial.number, state=TrialState.FAIL)
                self._add(_AGAIN, trial.number)
                if trial.params:
                    self._study.enqueue_trial(trial.params)
        return len(self.found())

    def failed(self) -> None:
        """Note that the last trial has no value, because its losses or weights became NaN or infinite."""
        self._add(_FAILED, max(one.number for one in self._study.trials if one.state == TrialState.FAIL))

    def found(self) -> list[Found]:
        """The trials that have ended, in their order."""
        failed = set(self._numbers(_FAILED))
        ended = [one for one in self._study.trials if one.state == TrialState.COMPLETE or one.number in failed]
        return [
            Found(
                number,
                one.value if one.state == TrialState.COMPLETE else None,
                dict(one.params),
                one.duration.total_seconds() if one.duration else 0.0,
            )
            for number, one in enumerate(ended, start=1)
        ]

    def best(self) -> Found:
        """The first of the trials with the highest value."""
        return max((one for one in self.found() if one.value is not None), key=lambda one: one.value or 0.0)

    def _numbers(self, name: str) -> list[int]:
        return list(self._study.user_attrs.get(name, []))

    def _add(self, name: str, number: int) -> None:
        self._study.set_user_attr(name, [*self._numbers(name), number])
