"""Signal handling in the workers of a loader."""

from __future__ import annotations

import os
import signal
import threading


def leave_sigterm_to_parent(worker: int) -> None:  # noqa: ARG001
    """Keep a worker alive after a SIGTERM to its whole process group, as sent by torchrun and schedulers.

    The run of the worker continues until it has saved, and needs batches until then. A SIGTERM from the parent ends the
    worker as usual. On platforms where the sender of a signal is unknown, nothing changes. Ctrl-C, which a terminal
    also sends to the whole group, is handled by the parent only.

    Args:
        worker: its index, the argument of a ``worker_init_fn``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads inherit it
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        continue
    os._exit(0)
