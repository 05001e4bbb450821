"""SIGTERM while a run trains: the first is noted, one that follows at once is taken for it, a later one ends at once."""

import signal
import subprocess
import sys
import time

WAIT = """
import time
from hf_multitask.training.callbacks import Termination

termination = Termination()
with termination:
    print("ready", flush=True)
    while not termination.asked:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(60)  # a step, or an evaluation, that takes its time
"""


def test_second_sigterm_ends_at_once():
    process = subprocess.Popen([sys.executable, "-c", WAIT], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)  # the launcher's and the scheduler's
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == -signal.SIGTERM
