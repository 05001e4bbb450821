"""What a run needs beside its rows: packages, trackers and a folder to write to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping

from transformers.integrations import INTEGRATION_TO_CALLBACK

from ...modeling.config import close_match
from ...tasks import Task


def check_extras(tasks: Mapping[str, Task], data: Mapping[str, object], metrics: Iterable[str]) -> None:
    """Check that the packages that the evaluation of some data needs are installed.

    Args:
        tasks: by name.
        data: the evaluation data.
        metrics: tasks whose own metrics are not computed.

    Raises:
        ValueError: a package is not.
    """
    for name, task in tasks.items():
        if task.source in data and name not in metrics:
            try:
                task.check_extras()
            except ValueError as problem:
                raise task.error(str(problem)) from None


def check_output_dir(folder: str) -> None:
    """Create the folder of a run, and check that files can be written there.

    Raises:
        ValueError: they cannot.
    """
    if not folder.strip():
        raise ValueError(f"Parameter `output_dir` should name a folder. Found `output_dir = {folder!r}`.")
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as problem:  # the latter of a character that no name can have
        reason = (getattr(problem, "strerror", None) or str(problem)).lower()
        raise ValueError(
            f"Parameter `output_dir` should be a folder that can be written to ({reason}). "
            f"Found `output_dir = {folder!r}`. Name another folder."
        ) from None


def check_trackers(names: Iterable[str]) -> None:
    """Check that the trackers that a run reports to exist, with the packages that they need.

    Raises:
        ValueError: one is unknown, or its package is not installed.
    """
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                f"Parameter `report_to` should hold trackers: {', '.join(INTEGRATION_TO_CALLBACK)}, or none. "
                f"Found {name!r}.{close_match(str(name), list(INTEGRATION_TO_CALLBACK))}"
            )
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as problem:
            said = " ".join(str(problem).split())
            raise ValueError(
                f"Parameter `report_to` names '{name}', which cannot be used: {said} Install it, or leave it out."
            ) from None
