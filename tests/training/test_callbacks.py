"""The plan as it is printed; SIGTERM while a run trains: the first is noted, a later one ends at once."""

import signal
import subprocess
import sys
import time

from hf_multitask.data import Share
from hf_multitask.training.callbacks import Reader, describe_shares

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


def test_plan_shows_every_task_with_its_rows_labels_and_classes():
    shares = [Share("atis", 4000, 0.5, 2000), Share("web", 0, 0.3, 1200), Share("prices", 1600, 0.2, 800)]
    readers = {
        "atis": [Reader("intent", 4000, 26), Reader("slots", 1234, 127)],
        "web": [Reader("topic", None, 7)],
        "prices": [Reader("prices", 1600, None)],
    }
    assert describe_shares("Plan: 10 steps", shares, readers).splitlines() == [
        "Plan: 10 steps",
        "task    dataset   rows  labelled  classes  share  passes",
        "intent     atis  4,000     4,000       26  50.0%    0.50",
        "slots      atis  4,000     1,234      127  50.0%    0.50",
        "topic       web      ?         ?        7  30.0%       ?",
        "prices   prices  1,600     1,600        -  20.0%    0.50",
        "Tasks that read the same dataset share its rows.",
    ]


def test_plan_of_many_tasks_shows_the_most_and_the_least_drawn():
    shares = [Share(f"d{number}", 10 * number, 0.01, number) for number in range(1, 31)]
    readers = {share.name: [Reader(f"t{share.name[1:]}", share.rows, 2)] for share in shares}
    readers["d30"].append(Reader("t30b", 300, 3))
    lines = describe_shares("Plan", shares, readers).splitlines()
    assert [line.split()[0] for line in lines[2:9]] == ["t30", "t30b", "t29", "...", "t3", "t2", "t1"]
    # The rows of the datasets that are not shown, each once.
    assert lines[5].split() == ["...", "25", "more", f"{sum(10 * number for number in range(4, 29)):,}"]
