"""A run that is killed at any moment and resumed ends in the weights of the run that was left alone, to the bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
import yaml
from killing import Run, plan
from methods import METHODS
from parameters import few
from reading import rows_of
from safetensors.torch import load_file

pytestmark = pytest.mark.process

RUN = {
    "num_train_epochs": 8,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 4,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "save_best_by_task": True,
    "early_stopping_patience": 100,
    "disable_tqdm": True,
    "logging_steps": 1,
}


class Table:
    """Runs of one recipe in the folder of a kitchen."""

    def __init__(self, kitchen, context, ranks=1, model=None, **training):
        self.folder, self.context, self.ranks = kitchen.folder, context, ranks
        recipe = kitchen.changed("training", **{**RUN, **training})
        recipe["model"] = {}  # dropout on: the random state is part of a checkpoint
        recipe["model"] |= model or {}
        self.recipe = self.folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(recipe))

    def words(self, name):
        output = ["--output_dir", str(self.folder / name), "--resume_from_checkpoint", "true"]
        return ["train", str(self.recipe), *output]

    def start(self, name, *words):
        return Run(self.context, [*self.words(name), *words], self.folder / f"{name}.log", self.ranks)

    def finish(self, name, *words):
        assert set(self.start(name, *words).wait()) == {0}, self.log(name)

    def log(self, name):
        return (self.folder / f"{name}.log.0").read_text()

    def what_is_left(self, name):
        """Everything that may not depend on whether a run was killed."""
        folder = self.folder / name
        state = json.loads((folder / "trainer_state.json").read_text())
        timed = ("runtime", "per_second", "train_loss", "total_flos")
        logs = [
            {key: value for key, value in entry.items() if not any(word in key for word in timed)}
            for entry in state["log_history"]
        ]
        # The best evaluation may be one of a step that saves no checkpoint: the Trainer then names none.
        best = [state["best_metric"], state["best_global_step"], os.path.basename(state["best_model_checkpoint"] or "")]
        return logs, best, json.loads((folder / "best_checkpoints.json").read_text())

    def compare(self, one, other):
        weights = [load_file(self.folder / name / "model.safetensors") for name in (one, other)]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
        assert self.what_is_left(one) == self.what_is_left(other)


def kill_and_resume(table, seed, kills):
    """Kill runs until so many kills are done, each run resumed until it ends, and compare with one left alone."""
    table.finish("alone")
    moments, died = plan(seed), Counter()
    while sum(died.values()) < kills:
        shutil.rmtree(table.folder / "killed", ignore_errors=True)
        while sum(died.values()) < kills:
            run = table.start("killed")
            phase = run.kill_at(*next(moments))
            if phase is None:
                assert set(run.wait()) == {0}, table.log("killed")
                break
            died[phase] += 1
        else:
            table.finish("killed")
        table.compare("alone", "killed")
    died["torn"] = table.log("killed").count("is not whole")
    return died


def record(record_property, died):
    for phase, count in died.items():
        record_property(f"{phase}, times", count)


def test_killed_and_resumed_is_exact(kitchen, context, record_property):
    record(record_property, kill_and_resume(Table(kitchen, context, num_train_epochs=4), seed=0, kills=3))


@pytest.mark.slow
def test_killed_and_resumed_is_exact_with_a_balancer_that_learns(kitchen, context, record_property):
    exact = {"balancing": "famo", "balancing_kwargs": {"exact": True}, "gradient_accumulation_steps": 2}
    table = Table(kitchen, context, num_train_epochs=4, **exact)
    record(record_property, kill_and_resume(table, seed=5, kills=3))


@pytest.mark.slow
def test_killed_and_resumed_is_exact_with_masks_windows_choices_and_groups(kitchen, context, record_property):
    types = {"answers": "question-answering", "choices": "multiple-choice", "groups": "sentence-similarity"}
    for name, kind in types.items():
        kitchen.recipe["tasks"][name] = {"type": kind}
        files = {split: f"{name}/{split}.jsonl" for split in ("train", "validation")}
        for split, file in files.items():
            kitchen.write(file, list(rows_of(kind, 9, split)))
        kitchen.recipe["datasets"][name] = {"path": "json", "data_files": files}
    kitchen.recipe["tasks"]["groups"]["negatives"] = 3
    kitchen.recipe["tasks"]["masks"] = {"type": "fill-mask", "dataset": "sentiment"}
    record(record_property, kill_and_resume(Table(kitchen, context, num_train_epochs=4), seed=1, kills=2))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_3_times_and_resumed_is_exact_with_every_method(method, kitchen, context, record_property):
    for split in ("train", "validation"):
        kitchen.write(f"choices/{split}.jsonl", list(rows_of("multiple-choice", 9, split)))
    files = {split: f"choices/{split}.jsonl" for split in ("train", "validation")}
    kitchen.recipe["datasets"]["choices"] = {"path": "json", "data_files": files}
    kitchen.recipe["tasks"]["choices"] = {"type": "multiple-choice"}
    # Saved after every step: nearly every death has something to go on from.
    training = {"num_train_epochs": 1, "max_steps": 8, "eval_steps": 1, "save_steps": 1, **METHODS[method]}
    table = Table(kitchen, context, **training)
    record(record_property, kill_and_resume(table, seed=list(METHODS).index(method), kills=3))


def stream_sentiment(kitchen):
    """Let the recipe stream its reviews, and the arguments that a stream of unknown size needs."""
    kitchen.recipe["datasets"]["sentiment"]["streaming"] = True
    kitchen.recipe["tasks"]["sentiment"]["label_names"] = ["negative", "positive"]
    return {"sampling": "uniform", "num_train_epochs": 1, "max_steps": 20}  # more than three passes of 24 reviews


@pytest.mark.slow
def test_killed_and_resumed_is_exact_on_a_stream(kitchen, context, record_property):
    record(record_property, kill_and_resume(Table(kitchen, context, **stream_sentiment(kitchen)), seed=2, kills=2))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_25_times_on_a_stream_and_resumed_is_exact(kitchen, context, workers, record_property):
    training = {**stream_sentiment(kitchen), "max_steps": 40, "dataloader_num_workers": workers}
    record(record_property, kill_and_resume(Table(kitchen, context, **training), seed=workers, kills=25))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "training"),
    [
        (1, {}),
        (1, {"dataloader_num_workers": 2}),
        (1, {"save_total_limit": 1, "load_best_model_at_end": False, "max_steps": 33, "save_steps": 3}),
        (1, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "epoch"}),
        (2, {"per_device_train_batch_size": 4}),
        (2, {"per_device_train_batch_size": 4, "dataloader_num_workers": 2}),
    ],
    ids=["plain", "workers", "limit", "epochs", "ranks", "ranks-workers"],
)
def test_killed_25_times_and_resumed_is_exact(kitchen, context, ranks, training, record_property):
    if training.get("save_strategy") == "epoch":
        training = {**training, "eval_strategy": "epoch"}
    record(record_property, kill_and_resume(Table(kitchen, context, ranks, **training), seed=ranks, kills=25))


@pytest.mark.parametrize(
    ("ranks", "group", "training"),
    [
        (1, False, {"save_strategy": "best", "load_best_model_at_end": False, "num_train_epochs": 4}),
        pytest.param(
            1, True, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}, marks=pytest.mark.slow
        ),
        pytest.param(2, True, {"dataloader_num_workers": 2, "per_device_train_batch_size": 4}, marks=pytest.mark.slow),
        pytest.param(1, False, {"save_strategy": "epoch", "eval_strategy": "epoch"}, marks=pytest.mark.slow),
    ],
    ids=["best", "workers", "ranks", "epochs"],
)
def test_sigterm_saves_first_and_the_rest_is_exact(kitchen, context, ranks, group, training):
    table = Table(kitchen, context, ranks, **training)
    table.finish("alone")
    ended = 0
    for count in (3, 2, 4):
        run = table.start("ended")
        while run.shared[1] < count and run.processes[0].is_alive():
            time.sleep(0.0003)
        run.signal(signal.SIGTERM, group=group)
        codes = set(run.wait())
        if codes == {0}:
            break
        assert codes == {143}, table.log("ended")
        ended += 1
        log = table.log("ended")
        assert log.count("SIGTERM ended the run after step") == ended and "Traceback" not in log
        assert log.count("--resume_from_checkpoint true") == ended
    assert ended > 1 and "is not whole" not in table.log("ended")
    table.finish("ended")
    table.compare("alone", "ended")


@pytest.mark.slow
def test_torchrun_that_is_ended_saves_first(kitchen, context):
    """It hands SIGTERM on to the groups of its ranks, workers and all, and kills what is there 30 seconds later."""
    training = {"dataloader_num_workers": 2, "per_device_train_batch_size": 4}
    table = Table(kitchen, context, 2, **training)
    table.finish("alone")
    output = kitchen.folder / "ended"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "127.0.0.1:0", "-m", "hf_multitask.cli", *table.words("ended")]
    with (kitchen.folder / "ended.log.0").open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while not (output / "checkpoint-4" / "trainer_state.json").exists() and run.poll() is None:
            time.sleep(0.001)
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) != 0
    assert table.log("ended").count("SIGTERM ended the run after step") == 1, table.log("ended")
    assert "Error" not in table.log("ended").split("SIGTERM ended")[0]
    table.finish("ended")
    table.compare("alone", "ended")


# The rank whose disk is full, and the bytes that a file may have on it: too few for the weights, or for a random state,
# or for the optimizer alone, which only the first rank writes.
@pytest.mark.parametrize(
    ("full", "size", "reason"),
    few(
        [
            (0, 10_000, "file too large"),
            (1, 10_000, "the storage of another process is full or failed"),
            (0, 200_000, "torch could not write a file to its end"),
        ],
        [(1, 10_000, "the storage of another process is full or failed")],
    ),
)
def test_full_disk_of_one_rank_is_agreed_on(full, size, reason, kitchen, context):
    training = {"num_train_epochs": 2, "save_steps": 2, "save_best_by_task": False, "load_best_model_at_end": False}
    table = Table(kitchen, context, 2, per_device_train_batch_size=4, **training)
    table.finish("alone")
    saved = next((table.folder / "alone").glob("checkpoint-*"))
    fits, does_not = ((saved / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
    assert size == 10_000 or fits < size < does_not
    run = Run(context, table.words("filled"), table.folder / "filled.log", 2, full=full, size=size)
    assert set(run.wait()) == {0}, table.log("filled")
    log = table.log("filled")
    assert f"The checkpoint of step 2 could not be saved ({reason}); there is none before it." in log
    assert log.count("could not be saved") == 1
    weights = [load_file(table.folder / name / "model.safetensors") for name in ("alone", "filled")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_sigterm_that_arrives_while_stopped_ends_the_run_with_143(kitchen, context):
    run = Table(kitchen, context, eval_steps=1, save_steps=1, num_train_epochs=400).start("ended")
    while run.shared[1] < 2:
        time.sleep(0.001)
    pid = run.processes[0].pid
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGCONT)
    assert run.wait() == [143]


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_with_the_same_rows(kitchen, context, record_property):
    table = Table(kitchen, context, model={"dropout": 0.0, "dtype": "float64"}, num_train_epochs=3, learning_rate=1e-3)
    table.finish("alone")
    for ranks in (1, 2, 1):
        table.ranks = ranks
        run = table.start("moved", "--per_device_train_batch_size", str(8 // ranks))
        if ranks == 2 or not (kitchen.folder / "moved").exists():
            while run.shared[1] < 4 and run.processes[0].is_alive():
                time.sleep(0.0003)
            run.signal(signal.SIGTERM)
            assert set(run.wait()) == {143}, table.log("moved")
    assert set(run.wait()) == {0}, table.log("moved")
    assert "was written by 1 processes and is resumed by 2: the rows stay the same" in table.log("moved")
    ones, others = (load_file(table.folder / name / "model.safetensors") for name in ("alone", "moved"))
    assert ones["heads.ner.native.classifier.weight"].dtype == torch.float64
    difference = torch.cat([(value - others[name]).flatten() for name, value in ones.items()]).norm()
    difference = float(difference / torch.cat([value.flatten() for value in ones.values()]).norm())
    record_property("1 rank against 1, 2 and 1 again, relative norm", difference)
    assert difference < 1e-9


def test_what_keeps_a_run_from_going_on_is_said_in_one_sentence(kitchen):
    saves = kitchen.changed("training", save_strategy="steps", save_steps=2, eval_strategy="no")
    assert kitchen.run(["train"], saves)[0] == 0
    resume = ["--resume_from_checkpoint", "true", "--num_train_epochs", "2"]
    rows = (kitchen.folder / "ner" / "train.jsonl").read_text()
    (kitchen.folder / "ner" / "train.jsonl").write_text("\n".join(reversed(rows.splitlines())))
    code, _, err = kitchen.run(["train"], saves, *resume)
    assert code == 2 and err.splitlines()[-1].startswith("hf-multitask: error: ")
    assert "The contents of the datasets of this run and of checkpoint" in err and "ignore_data_skip=True" in err
    assert kitchen.run(["train"], saves, *resume, "--ignore_data_skip", "true")[0] == 0
    (kitchen.folder / "ner" / "train.jsonl").write_text(rows)
    other = {**saves, **{key: {"sentiment": saves[key]["sentiment"]} for key in ("tasks", "datasets")}}
    code, _, err = kitchen.run(["train"], other, *resume)
    assert code == 2 and "has foreign weights for head 'ner'; the model's tasks are sentiment." in err
    state = max((kitchen.folder / "out").glob("checkpoint-*"), key=os.path.getmtime) / "multitask_state.json"
    content = json.loads(state.read_text())
    state.write_text(json.dumps({**content, "format": 99}))
    code, _, err = kitchen.run(["train"], saves, *resume)
    assert code == 2 and "comes from a newer hf_multitask. Upgrade hf_multitask." in err
    (state.parent / "optimizer.pt").unlink()
    code, _, err = kitchen.run(["train"], saves, "--resume_from_checkpoint", str(state.parent))
    assert code == 2 and "is not whole: it has no whole optimizer.pt" in err
