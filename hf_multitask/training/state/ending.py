"""When a run saves at the end of an epoch, and the signals that end it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Handler = Callable[[int, FrameType | None], object] | int | None

# By signal, the seconds in which another one counts as the first.
_SAME = {int(signal.SIGTERM): 1.0, int(signal.SIGINT): 0.3}
_CAUGHT = b"\nCtrl-C: the run ends after this step, with a checkpoint. Press it again to end at once, without one.\n"


class SaveAfterEpoch(TrainerCallback):
    """Puts off a save that is due at the last step of an epoch until the epoch's evaluation and log are done.

    A run that resumes from a checkpoint of that step begins the next epoch, and would lose them. It logs, evaluates and
    saves as often as its own arguments say, while the Trainer uses those of the checkpoint.
    """

    def __init__(self) -> None:
        self.waiting = False  # between the last step of an epoch and its end
        self._due = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """Begin a training."""
        state.compute_steps(args, state.max_steps)
        self.waiting = self._due = False

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """Put a save off."""
        self.waiting = float(state.epoch or 0).is_integer()
        if self.waiting:
            self._due, control.should_save = control.should_save, False

    def on_epoch_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """Save if it was put off."""
        control.should_save |= self._due
        self.waiting = self._due = False


class Termination:
    """Catches SIGTERM and Ctrl-C while a run trains: ``asked`` is true after the first; a second ends it at once.

    One that follows shortly counts as the first: launchers, schedulers and terminals may each send it. Signals reach
    the main thread only; in another nothing is caught. Where SIGINT is ignored, as in a shell's background jobs, it
    stays so.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._time = 0.0
        self._before: dict[int, Handler] = {}

    @property
    def asked(self) -> bool:
        """Whether the run is to end."""
        return self._number is not None

    @property
    def name(self) -> str:
        """The name of the signal."""
        return "Ctrl-C" if self._number == signal.SIGINT else "SIGTERM"

    def error(self) -> BaseException:
        """What ends the run once all is saved: ``SystemExit`` with code 143, or ``KeyboardInterrupt``."""
        return KeyboardInterrupt() if self._number == signal.SIGINT else SystemExit(128 + signal.SIGTERM)

    def __enter__(self) -> None:
        self._number, self._before = None, {}
        if threading.current_thread() is threading.main_thread():
            for number in _SAME:
                if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._catch)

    def __exit__(self, *_: object) -> None:
        self._put_back()

    def _put_back(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def _catch(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._number is None:
            self._number, self._time = number, time.monotonic()
            if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
                os.write(2, _CAUGHT)  # nothing else is safe here
        elif time.monotonic() - self._time > _SAME[number]:
            self._put_back()
            os.kill(os.getpid(), number)
