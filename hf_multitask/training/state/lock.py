"""One run at a time in a folder: a lock that the system drops when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = "_run.lock"  # what begins with an underscore is pushed nowhere

_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_HELD: set[int] = set()


def _let_go_in_child() -> None:
    """Leave the locks to the process that holds them: a worker that outlives it must not keep them."""
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


class RunLock:
    """Holds a folder for a run. If the system or the file system has no locks, nothing is locked or refused.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._handle: int | None = None

    def take(self) -> None:
        """Hold the folder until :meth:`release`, or until the process ends.

        Raises:
            ValueError: another run holds it.
        """
        path = self.folder / LOCK_NAME
        while fcntl is not None and self._handle is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:  # a folder that cannot be written to is reported where the run writes into it
                return
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                    self._handle = handle
            except OSError as problem:
                if problem.errno in _TAKEN:
                    holder = os.read(handle, 20).decode(errors="replace").strip()
                    raise ValueError(
                        f"The folder '{self.folder}' is in use by another run, process {holder or 'unknown'}. Wait for "
                        "it to end, end it, or give another output_dir."
                    ) from None
                return
            finally:
                if self._handle is None:
                    os.close(handle)
        if self._handle is not None:
            os.truncate(self._handle, 0)
            os.write(self._handle, f"{os.getpid()}\n".encode())
            _HELD.add(self._handle)

    def release(self) -> None:
        """Release the folder, and leave nothing in it."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError):
            os.unlink(self.folder / LOCK_NAME)
        _HELD.discard(self._handle)
        os.close(self._handle)
        self._handle = None
