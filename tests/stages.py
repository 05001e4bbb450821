"""The stages of the suite, each of which can be run alone: every test is in one, and does no more than it may there."""

import contextlib
import multiprocessing.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import Trainer

STAGES = {
    "unit": "neither a Trainer nor another process: methods, sampler, heads, data, tasks",
    "trainer": "trains and evaluates in the process of the test",
    "process": "starts other processes: a Hub on loopback, ranks, kills, pages, commands",
}
# Where a test begins; what it needs, or a mark of its own, moves it up.
FOLDERS = {
    "aggregation": "unit",
    "balancing": "unit",
    "benchmarks": "trainer",
    "cli": "trainer",
    "data": "unit",
    "hub": "trainer",
    "modeling": "unit",
    "serving": "unit",
    "tasks": "unit",
    "training": "trainer",
}
FIXTURES = {"arguments": "trainer", "hub": "process"}
# By fixture, the group of tests that go to one worker of xdist: what they start, a server to fork from, is started once.
SHARED = {"launches": "forks", "context": "forks", "hub": "hub"}
# Cases of parametrized tests whose lines and branches other cases and tests run as well; see CONTRIBUTING.md.
SLOW_CASES = frozenset((Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").splitlines())
ORDER = list(STAGES)
EVENTS = frozenset(("subprocess.Popen", "os.posix_spawn", "os.system", "tests.fork"))


def stage_of(item: pytest.Item, root: Path) -> str:
    """The stage of a test.

    Raises:
        pytest.UsageError: the folder of the test has no stage, or the test has marks of two.
    """
    folder, *inner = item.path.relative_to(root).parts
    if inner and folder not in FOLDERS:
        raise pytest.UsageError(f"The folder tests/{folder} has no stage. Add it to FOLDERS in tests/stages.py.")
    marks = {mark.name for mark in item.iter_markers() if mark.name in STAGES}
    if len(marks) > 1:
        raise pytest.UsageError(f"{item.nodeid} is marked with two stages: {', '.join(sorted(marks))}. Keep one.")
    needs = {stage for name, stage in FIXTURES.items() if name in getattr(item, "fixturenames", ())}
    if marks:
        needs = marks
    elif inner:
        needs.add(FOLDERS[folder])
    return max(needs or {"unit"}, key=ORDER.index)


def check_slow_cases(collected: set[str]) -> None:
    """Every line of slow.txt is a case, as far as its test was collected.

    Raises:
        pytest.UsageError: a line names no case, so that one is slow no longer that was meant to be.
    """
    tests = {name.partition("[")[0] for name in collected}
    gone = sorted(name for name in SLOW_CASES - collected if name.partition("[")[0] in tests)
    if gone:
        raise pytest.UsageError(f"tests/slow.txt names a case that is not there: {gone[0]}. Remove or change the line.")


class Limits:
    """What the running test may not do, since its stage has none of it."""

    def __init__(self):
        self.stage = None
        sys.addaudithook(self.on_event)

    def refuse(self, what: str, stage: str) -> None:
        """End the running test if its stage comes before one.

        An outcome is no Exception, so the code under test does not catch it.
        """
        if self.stage is not None and ORDER.index(self.stage) < ORDER.index(stage):
            own, self.stage = self.stage, None  # the report may start what it likes
            pytest.fail(f"A test of the stage '{own}' {what}. Mark it with @pytest.mark.{stage}, or let it do without.")

    def on_event(self, event: str, arguments: tuple) -> None:
        if event in EVENTS:
            self.refuse(f"starts a process ({event}: {arguments[:1]})", "process")

    @contextlib.contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Hold what runs to a stage."""
        self.stage = stage
        spawn = multiprocessing.util.spawnv_passfds  # which announces itself to no hook

        def announced(path, arguments, files):
            if not any(b"resource_tracker" in os.fsencode(word) for word in arguments):
                sys.audit("tests.fork", "an interpreter")
            return spawn(path, arguments, files)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(multiprocessing.util, "spawnv_passfds", announced)
            if stage == "unit":
                patch.setattr(Trainer, "__init__", lambda *_, **__: self.refuse("builds a Trainer", "trainer"))
            try:
                yield
            finally:
                self.stage = None
