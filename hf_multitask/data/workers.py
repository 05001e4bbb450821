"""What the workers of a loader do with signals."""

from __future__ import annotations

import os
import signal
import threading


def leave_sigterm_to_parent(worker: int) -> None:  # noqa: ARG001
    """Let a worker outlive a SIGTERM that is sent to its whole group, as torchrun and schedulers send it.

    The run that the worker belongs to goes on until it has saved, and needs its batches for that. The parent's own
    SIGTERM ends the worker as ever. Where signals do not tell who sent them, nothing changes. Ctrl-C, which a terminal
    sends to the whole group as well, is the parent's alone.

    Args:
        worker: its number; a ``worker_init_fn`` is called with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads inherit it
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        continue
    os._exit(0)
