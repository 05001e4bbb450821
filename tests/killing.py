"""Training processes that are really killed: forked from a server that has imported everything, through the command line."""

import contextlib
import gc
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import time

PHASES = ("elsewhere", "step", "evaluation", "saving")
WRAPPED = {"training_step": 1, "evaluation_loop": 2, "_save_checkpoint": 3}


def watch(shared) -> None:
    """Keep the phase that a process is in, and how often it was in it, where they outlive the process."""
    from hf_multitask import MultiTaskTrainer

    def wrap(name, phase):
        inner = getattr(MultiTaskTrainer, name)

        def outer(*args, **kwargs):
            before, shared[0] = shared[0], phase
            shared[phase] += 1
            try:
                return inner(*args, **kwargs)
            finally:
                shared[0] = before

        setattr(MultiTaskTrainer, name, outer)

    for name, phase in WRAPPED.items():
        wrap(name, phase)


def fill_first_save(size) -> None:
    """Let this process write no file of more than so many bytes in its first checkpoint, as on a full disk."""
    from hf_multitask import MultiTaskTrainer

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    inner, before = MultiTaskTrainer._save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def outer(self, *args):
        first = self.state.global_step == 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (size if first else before[0], before[1]))
        return inner(self, *args)

    MultiTaskTrainer._save_checkpoint = outer


def command(words, shared, size) -> None:
    """The command line."""
    from hf_multitask.cli import main

    watch(shared)
    if size is not None:
        fill_first_save(size)
    raise SystemExit(main(words))


def child(work, words, log, environment, shared, size) -> None:
    os.setsid()
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # for workers of loaders, as in a process of its own
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    gc.freeze()  # what the server has imported is no garbage at the end of a training
    sys.modules["matplotlib.backends.backend_agg"] = None  # without pictures; see conftest.py
    work(words, shared, size)


class Run:
    """A training of one or more ranks, by the command line or by another function of its words."""

    def __init__(self, context, words, log, ranks=1, full=None, size=10_000, work=command):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.shared = context.Array("i", len(PHASES), lock=False)
        self.processes = []
        for rank in range(ranks):
            environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
            shared = self.shared if rank == 0 else context.Array("i", len(PHASES), lock=False)
            room = size if rank == full else None
            arguments = (work, words, f"{log}.{rank}", environment if ranks > 1 else {}, shared, room)
            self.processes.append(context.Process(target=child, args=arguments))
            self.processes[-1].start()

    def kill_at(self, phase: int, count: int, delay: float) -> str | None:
        """Kill all ranks some seconds into the count-th time that the first is in a phase.

        Returns:
            The phase that it was in when it died; None when it ended before.
        """
        while self.shared[phase] < count and self.processes[0].is_alive():
            time.sleep(0.0003)
        time.sleep(delay)
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        return PHASES[self.shared[0]] if -signal.SIGKILL in self.wait() else None

    def signal(self, number, *, group=False):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(process.pid, number)

    def wait(self, seconds=200):
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, until - time.monotonic()))
            if process.is_alive():
                self.signal(signal.SIGKILL)
                raise TimeoutError("The run did not end.")
        return [process.exitcode for process in self.processes]


def execute(text, arguments, files):
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["-c", *arguments]
    exec(text, {"__name__": "__main__"})


class Script:
    """A script whose process gets signals, forked like the runs."""

    def __init__(self, context, folder, text, *arguments):
        self.files = [folder / name for name in ("said", "errors")]
        self.process = context.Process(target=execute, args=(text, arguments, [str(file) for file in self.files]))
        self.process.start()

    def wait_for(self, line, seconds=60):
        until = time.monotonic() + seconds
        while not self.files[0].exists() or line not in self.files[0].read_text().splitlines():
            assert self.process.is_alive() and time.monotonic() < until, self.files[1].read_text()
            time.sleep(0.01)

    def send(self, number):
        os.kill(self.process.pid, number)

    def wait(self, seconds=20):
        """The exit code."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.send(signal.SIGKILL)
        return self.process.exitcode


def start_server(monkeypatch):
    sys.audit("tests.fork", "fork server")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_multitask.cli", "hf_multitask", "transformers.trainer", "seqeval.metrics"])
    return context


def plan(seed: int):
    """Moments to kill at, without end: a phase, its count in the process, seconds into it."""
    draw = random.Random(seed)
    while True:
        phase = draw.choice((1, 2, 3))
        yield phase, draw.randint(1, 4), draw.uniform(0, (0, 0.008, 0.02, 0.05)[phase])
