"""The socket, the processes and the signals of a server."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from ..modeling.aliases import Open
from .settings import Settings

_BACKLOG = 2048
_SHORT = 30.0  # seconds within which a process that ends by itself is not started again
_MISTAKE = 2

Load = Callable[[], Open]  # makes the ServedPipeline; of several workers, in each of them


def serve(settings: Settings, load: Load) -> None:
    """Serve a model until a signal ends the server, which answers what it has accepted before.

    Args:
        settings: of the server.
        load: makes the pipeline.

    Raises:
        OSError: the address cannot be used.
        ValueError: the model cannot be served.
    """
    with bound(settings) as listener:
        if settings.workers == 1:
            _run(settings, load(), listener, lambda tasks: _tell(settings, listener, tasks))
        else:
            _supervise(settings, load, listener)


@contextlib.contextmanager
def bound(settings: Settings) -> Iterator[socket.socket]:
    """A socket at the address, which does not listen yet.

    Raises:
        OSError: the address cannot be used.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as problem:
        raise OSError(f"The host '{settings.host}' is not known ({problem}). Fix --host.") from None
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with _explained(settings):
            listener.bind(address)
        listener.set_inheritable(True)
        yield listener


@contextlib.contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        where = f"{settings.host}:{settings.port}"
        raise OSError(f"The address {where} cannot be used ({problem.strerror}). Choose another --port.") from None


def _run(settings: Settings, pipeline: Open, listener: socket.socket, tell: Callable[[str], None]) -> None:
    """Serve in this process; the tasks are told when it accepts connections."""
    from .app import make_server

    with _explained(settings):
        listener.listen(_BACKLOG)
    server = make_server(pipeline, settings)
    server.when_started = lambda: tell(", ".join(pipeline.served))
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # which uvicorn raises again, when all is answered
    try:
        server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(settings: Settings, listener: socket.socket, tasks: str) -> None:
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    workers = "" if settings.workers == 1 else f", {settings.workers} workers"
    sys.stdout.write(f"Serving {settings.model} ({tasks}) at http://{host}:{port}{workers}\n")
    sys.stdout.flush()


def _work(settings: Settings, load: Load, listener: socket.socket, told: Open) -> None:
    """Serve in a process of several."""
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // settings.workers))
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    try:
        _run(settings, load(), listener, lambda tasks: told.put((True, tasks)))
    except (ValueError, TypeError, OSError, ImportError) as problem:
        told.put((False, str(problem)))
        sys.exit(_MISTAKE)
    except KeyboardInterrupt:
        sys.exit(130)


def _end_with(parent: Open) -> None:
    """End this process as a signal does when the one that supervises it is gone."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _supervise(settings: Settings, load: Load, listener: socket.socket) -> None:
    """Keep several processes serving on one socket.

    Raises:
        ValueError: one cannot start.
    """
    from .metrics import SHARED

    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    signals: list[int] = []
    handlers = {one: signal.signal(one, lambda sig, _: signals.append(sig)) for one in (signal.SIGTERM, signal.SIGINT)}
    processes: dict[Open, float] = {}

    def start() -> None:
        process = context.Process(target=_work, args=(settings, load, listener, told))
        process.start()
        processes[process] = time.monotonic()

    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get(SHARED)
        os.environ[SHARED] = folder
        try:
            for _ in range(settings.workers):
                start()
            ready = 0
            while not signals:
                multiprocessing.connection.wait([process.sentinel for process in processes], timeout=0.2)
                while not told.empty():
                    good, said = told.get()
                    if not good:
                        raise ValueError(said)
                    ready += 1
                    if ready == settings.workers:
                        _tell(settings, listener, said)
                for process in [one for one in processes if not one.is_alive()]:
                    lived = time.monotonic() - processes.pop(process)
                    if not told.empty():
                        break  # which says why
                    if lived < _SHORT:
                        raise ValueError(f"A worker ended with exit code {process.exitcode} after {lived:.0f} s.")
                    sys.stderr.write(f"A worker ended with exit code {process.exitcode}; another one is started.\n")
                    start()
        finally:
            for process in processes:
                process.terminate()  # by SIGTERM, so that it answers what it has accepted
            for process in processes:
                process.join()
            for one, handler in handlers.items():
                signal.signal(one, handler)
            if before is None:
                del os.environ[SHARED]
            else:
                os.environ[SHARED] = before
    if signal.SIGINT in signals:
        raise KeyboardInterrupt
