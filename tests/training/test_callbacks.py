"""The plan as it is printed; signals while a run trains: the first is noted, a later one ends it at once."""

import signal
import time

import pytest
from killing import Script
from transformers import TrainerCallback

from hf_multitask import MultiTaskTrainer
from hf_multitask.data import Share
from hf_multitask.training.report.console import Reader, describe_shares
from hf_multitask.training.state.checkpoint import torn

WAIT = """
import signal, time
from hf_multitask.training.state.ending import Termination

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it

termination = Termination()
with termination:
    print("ready", flush=True)
    while not termination.asked:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(60)  # a step, or an evaluation, that takes its time
"""


@pytest.fixture
def waiting(context, tmp_path):
    return Script(context, tmp_path, WAIT)


@pytest.mark.process
def test_second_ctrl_c_ends_at_once(waiting):
    waiting.wait_for("ready")
    waiting.send(signal.SIGINT)
    waiting.wait_for("asked")
    time.sleep(0.5)
    waiting.send(signal.SIGINT)
    assert waiting.wait() == 1
    said = waiting.files[1].read_text()
    assert "Ctrl-C: the run ends after this step, with a checkpoint." in said and "KeyboardInterrupt" in said


@pytest.mark.process
def test_second_sigterm_ends_at_once(waiting):
    waiting.wait_for("ready")
    waiting.send(signal.SIGTERM)
    waiting.wait_for("asked")
    waiting.send(signal.SIGTERM)  # the launcher's and the scheduler's
    time.sleep(1.5)
    assert waiting.process.is_alive()
    waiting.send(signal.SIGTERM)
    assert waiting.wait() == -signal.SIGTERM


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
        "How many rows of a stream have labels is not known before training reads them.",
    ]


def test_plan_of_many_tasks_shows_the_most_and_the_least_drawn():
    shares = [Share(f"d{number}", 10 * number, 0.01, number) for number in range(1, 31)]
    readers = {share.name: [Reader(f"t{share.name[1:]}", share.rows, 2)] for share in shares}
    readers["d30"].append(Reader("t30b", 300, 3))
    lines = describe_shares("Plan", shares, readers).splitlines()
    assert [line.split()[0] for line in lines[2:9]] == ["t30", "t30b", "t29", "...", "t3", "t2", "t1"]
    # The rows of the datasets that are not shown, each once.
    assert lines[5].split() == ["...", "25", "more", f"{sum(10 * number for number in range(4, 29)):,}"]


class Press(TrainerCallback):
    """Presses Ctrl-C in a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("step", [2, 3])  # in the middle, and in the last one
def test_ctrl_c_saves_and_says_how_to_go_on(step, build_model, data, arguments, tokenizer, caplog, tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        values = arguments(max_steps=3)
        trainer = MultiTaskTrainer(
            build_model(), values, train_dataset=data(), processing_class=tokenizer, callbacks=[Press(step)]
        )
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    last = tmp_path / "out" / f"checkpoint-{step}"
    assert torn(last) is None
    assert (
        f"Ctrl-C ended the run after step {step}. Resume from {last} with resume_from_checkpoint=True." in caplog.text
    )
