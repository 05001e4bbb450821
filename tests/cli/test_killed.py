"""A run that is killed at any moment and resumed ends in the weights of the run that was left alone, to the bit."""

import json
import os
import shutil
from collections import Counter

import pytest
import torch
import yaml
from killing import Run, plan, start_server
from safetensors.torch import load_file

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

    def __init__(self, kitchen, context, ranks=1, **training):
        self.folder, self.context, self.ranks = kitchen.folder, context, ranks
        recipe = kitchen.changed("training", **{**RUN, **training})
        recipe["model"] = {}  # dropout on: the random state is part of a checkpoint
        self.recipe = self.folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(recipe))

    def start(self, name, *words):
        output = ["--output_dir", str(self.folder / name), "--resume_from_checkpoint", "true"]
        return Run(self.context, ["train", str(self.recipe), *output, *words], self.folder / f"{name}.log", self.ranks)

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
        best = [state["best_metric"], state["best_global_step"], os.path.basename(state["best_model_checkpoint"])]
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
    print(f"killed in {dict(died)}; torn checkpoints passed over: {table.log('killed').count('is not whole')}")


@pytest.fixture
def context(monkeypatch):
    return start_server(monkeypatch)


def test_killed_and_resumed_is_exact(kitchen, context):
    kill_and_resume(Table(kitchen, context, num_train_epochs=4), seed=0, kills=4)
