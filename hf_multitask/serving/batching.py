"""One thread that runs the model, on inputs of all clients at once."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from ..modeling.aliases import Values
from .metrics import Metrics
from .served import Item, ServedPipeline
from .settings import TOKENS, Settings

_MEMORY = 0.1  # how much of the mean cost of an input the last pass is
_GLANCE = 0.05  # seconds, after which a signal is noticed


class Busy(Exception):
    """There is no room for more inputs.

    Args:
        seconds: after which there may be.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"Too many inputs are waiting. Repeat the request in {seconds} s.")
        self.seconds = seconds


class Draining(Exception):
    """The server ends, and accepts no more requests."""


class Job:
    """The inputs of one request.

    Args:
        items: the inputs, in the order of their answers.

    Attributes:
        answers: the future of their answers. If it is canceled, inputs that are not running are left out.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self.items, self.found = items, dict[int, Values]()
        # The longest first, as the pipeline has them, so that inputs of one pass have similar lengths.
        self.waiting = deque(sorted(range(len(items)), key=lambda place: max(items[place].lengths), reverse=True))
        self.answers: Future[list[Values]] = Future()
        self.since = time.monotonic()

    def receive(self, place: int, answer: Values) -> None:
        """Take the answer to an input; the last one resolves the future."""
        self.found[place] = answer
        if len(self.found) == len(self.items):
            with suppress(InvalidStateError):  # the client is gone
                self.answers.set_result([self.found[number] for number in range(len(self.items))])

    def fail(self, problem: Exception) -> None:
        """Resolve the future with an error, and run no more of the inputs."""
        self.waiting.clear()
        with suppress(InvalidStateError):
            self.answers.set_exception(problem)


Batch = list[tuple[Job, int]]


class Batcher:
    """Passes of the model over the inputs of all requests.

    A pass has at most ``max_batch_size`` inputs and ``TOKENS`` tokens, padding included. Requests take turns, an input
    at a time, so that one with many inputs does not delay the others.

    Args:
        pipeline: of the model.
        settings: of the server.
        metrics: of the server.
    """

    def __init__(self, pipeline: ServedPipeline, settings: Settings, metrics: Metrics) -> None:
        self.pipeline, self.settings, self.metrics = pipeline, settings, metrics
        self.jobs: deque[Job] = deque()
        self.pending = 0  # inputs that were accepted and are not yet answered
        self.draining = False
        self._ended = False
        self._cost = 0.01  # seconds of an input, on average
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def admit(self, count: int) -> None:
        """Accept inputs, before they are read.

        Raises:
            Busy: there is no room for them now.
            Draining: the server ends.
        """
        with self._changed:
            if self.draining:
                raise Draining
            if self.pending + count > self.settings.max_queue:
                raise Busy(max(1, min(60, math.ceil(self.pending * self._cost))))
            self.pending += count
            self.metrics.queue.set(self.pending)

    def release(self, count: int) -> None:
        """Make room, when inputs that were accepted are answered or cannot be."""
        with self._changed:
            self.pending -= count
            self.metrics.queue.set(self.pending)
            self._changed.notify_all()

    def submit(self, job: Job) -> None:
        """Queue inputs that were accepted and read."""
        with self._changed:
            self.jobs.append(job)
            self._changed.notify_all()

    def drain(self) -> None:
        """Accept no more inputs; safe in a signal handler, which may have interrupted a method of this object."""
        self.draining = True

    def close(self) -> None:
        """End the thread, when all accepted inputs are answered."""
        self.drain()
        with self._changed:
            self._changed.wait_for(lambda: not self.pending)
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.jobs or self._ended)
                if self._ended:
                    return
                until = self.jobs[0].since + self.settings.max_wait_ms / 1000
                while not self._full() and (left := until - time.monotonic()) > 0:
                    self._changed.wait(min(left, _GLANCE))
                batch = self._take()
            if batch:
                self._run(batch)

    def _full(self) -> bool:
        """Whether the next pass need not wait for other inputs."""
        queued = sum(len(job.waiting) for job in self.jobs)
        return self.draining or queued >= self.settings.max_batch_size

    def _take(self) -> Batch:
        batch: Batch = []
        groups: set[str] = set()
        rows = longest = 0
        left: deque[Job] = deque()
        while self.jobs and len(batch) < self.settings.max_batch_size:
            job = self.jobs.popleft()
            if job.answers.cancelled() or not job.waiting:
                continue
            item = job.items[job.waiting[0]]
            more, most = rows + len(item.lengths), max(longest, *item.lengths)
            other_group = item.group is not None and groups - {item.group}
            if batch and (more * most > TOKENS or other_group):
                left.append(job)
                continue
            batch.append((job, job.waiting.popleft()))
            rows, longest = more, most
            if item.group is not None:
                groups.add(item.group)
            if job.waiting:
                self.jobs.append(job)
        self.jobs.extendleft(reversed(left))
        return batch

    def _run(self, batch: Batch) -> None:
        start = time.monotonic()
        try:
            answers = self.pipeline.answers([job.items[place] for job, place in batch])
        except Exception as problem:
            if len(batch) > 1:  # the fault of one of them, which the others are not to share
                for member in batch:
                    self._run([member])
            else:
                batch[0][0].fail(problem)
            return
        seconds = time.monotonic() - start
        self._cost += _MEMORY * (seconds / len(batch) - self._cost)
        lengths = [length for job, place in batch for length in job.items[place].lengths]
        self.metrics.on_pass(len(batch), len(lengths) * max(lengths), seconds)
        for (job, place), answer in zip(batch, answers, strict=True):
            job.receive(place, answer)
