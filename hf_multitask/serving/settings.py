"""How a model is served, and the limits of a request."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

BODY = 8 << 20  # bytes of a body
CHARACTERS = 100_000  # of an input
TOKENS = 16_384  # of a pass, padding included, and of an input
BODY_SECONDS = 60.0  # in which a body has to be there
KEEP_SECONDS = 75  # that a connection is kept for the next request, longer than proxies keep theirs
DRAIN_SECONDS = 300  # for what was accepted, after a signal

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is served.

    Args:
        model: its name, for clients.
        host: an address of this machine.
        port: 0 for a free one.
        max_batch_size: inputs of a pass.
        max_wait_ms: milliseconds that an input waits for others to join its pass.
        max_queue: inputs that are accepted and not yet answered, of each process.
        workers: processes, each with the model.
        token: that clients send as a bearer token; None where they need none.

    Raises:
        ValueError: a value is out of its range.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    max_batch_size: int = 32
    max_wait_ms: float = 5.0
    max_queue: int = 1024
    workers: int = 1
    token: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"`port` should be between 0, for any free port, and 65535. Found `port = {self.port}`.")
        for name in ("max_batch_size", "max_queue", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` should be 1 or more. Found `{name} = {getattr(self, name)}`.")
        if not 0 <= self.max_wait_ms <= 60_000:
            raise ValueError(
                f"`max_wait_ms` should be between 0 and 60000 milliseconds. Found `max_wait_ms = {self.max_wait_ms:g}`."
            )

    def __repr__(self) -> str:
        """Without the token."""
        return f"Settings(model={self.model!r}, host={self.host!r}, port={self.port})"


def check_extra() -> None:
    """Check that the packages of the server are there.

    Raises:
        ImportError: one is not.
    """
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"serve needs the package '{name.replace('_', '-')}', which is not installed. "
                "Run: pip install 'hf_multitask[serve]'"
            )
