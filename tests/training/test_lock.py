"""One run at a time in a folder."""

import os
import signal
import threading

import pytest
from killing import Script
from transformers import TrainerCallback

from hf_multitask import MultiTaskTrainer
from hf_multitask.training.state.lock import LOCK_NAME, RunLock

HOLD = """
import os, sys, time
from hf_multitask.training.state.lock import RunLock

RunLock(sys.argv[1]).take()
if os.fork() == 0:
    time.sleep(60)  # a worker that outlives the run
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.process
def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path, context):
    folder = tmp_path / "out"
    script = Script(context, tmp_path, HOLD, str(folder))
    script.wait_for("held")
    with pytest.raises(ValueError, match=rf"'{folder}' is in use by another run, process {script.process.pid}\. Wait"):
        RunLock(folder).take()
    script.send(signal.SIGKILL)
    assert script.wait() == -signal.SIGKILL
    lock = RunLock(folder)
    lock.take()
    lock.release()
    assert not list(folder.iterdir())


class Second(TrainerCallback):
    def __init__(self, build):
        self.build, self.said = build, None

    def on_step_end(self, args, state, control, **kwargs):
        with pytest.raises(ValueError, match=f"process {os.getpid()}") as said:
            self.build().train()
        self.said = said


def test_a_second_run_is_refused_and_later_ones_are_not(build_model, data, arguments, tokenizer, tmp_path):
    def build(**kwargs):
        values = arguments(max_steps=1)
        return MultiTaskTrainer(build_model(), values, train_dataset=data(8, 8), processing_class=tokenizer, **kwargs)

    second = Second(build)
    trainer = build(callbacks=[second])
    trainer.train()
    assert second.said is not None and not (tmp_path / "out" / LOCK_NAME).exists()
    trainer.remove_callback(second)
    trainer.train()


def test_where_nothing_can_be_held_a_run_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    lock = RunLock(tmp_path / "file")  # what is wrong with it is said by what writes there
    lock.take()
    lock.release()
    taken = []
    one = RunLock(tmp_path)
    one.take()
    thread = threading.Thread(target=lambda: taken.append((tmp_path / LOCK_NAME).read_text()))
    thread.start()
    thread.join()
    one.release()
    assert taken == [f"{os.getpid()}\n"] and not (tmp_path / LOCK_NAME).exists()
