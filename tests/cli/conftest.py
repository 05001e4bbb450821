"""Recipes on tiny backbones, each test free to spoil its own."""

import copy
import json
import shutil

import pytest
import yaml
from tiny import read_rows

from hf_multitask.cli import main


class Kitchen:
    """A folder with a recipe and its data, and the command line to run it with."""

    def __init__(self, folder, backbone, capsys):
        self.folder, self.capsys = folder, capsys
        shutil.copytree(backbone, folder / "backbone")
        for task, counts in (("sentiment", (24, 9, 9)), ("ner", (16, 7, 7))):
            for split, count in zip(("train", "validation", "test"), counts, strict=True):
                self.write(f"{task}/{split}.jsonl", read_rows(task, split, count))
        self.recipe = {
            "backbone": "backbone",
            "model": {"dropout": 0.0},
            "datasets": {
                name: {
                    "path": "json",
                    "data_files": {split: f"{name}/{split}.jsonl" for split in ("train", "validation", "test")},
                }
                for name in ("sentiment", "ner")
            },
            "tasks": {"sentiment": {"type": "sequence-classification"}, "ner": {"type": "token-classification"}},
            "training": {
                "output_dir": "out",
                "num_train_epochs": 1,
                "per_device_train_batch_size": 8,
                "learning_rate": "5e-4",
                "use_cpu": True,
                "eval_strategy": "epoch",
                "report_to": "none",
            },
        }

    def write(self, name, rows):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def changed(self, *keys, **values):
        """The recipe with values set below the given keys; None takes a key away."""
        recipe = copy.deepcopy(self.recipe)
        inner = recipe
        for key in keys:
            inner = inner[key]
        for key, value in values.items():
            inner[key] = value
            if value is None:
                del inner[key]
        return recipe

    def run(self, command, recipe=None, *words):
        """Exit code, standard output and standard error of a command on a recipe."""
        path = self.folder / "recipe.yaml"
        path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe or self.recipe), encoding="utf-8")
        self.capsys.readouterr()
        code = main([*command, str(path), *words])
        return code, *self.capsys.readouterr()


@pytest.fixture
def kitchen(tmp_path, backbone_path, capsys):
    return Kitchen(tmp_path, backbone_path(), capsys)
