"""Whatever stands in rows, arguments, config.json and checkpoints ends well, or in one sentence and exit code 2."""

import json
import os
import random
import shutil

import pytest
import torch
import yaml
from fuzzing import run_cases

from hf_multitask.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.timeout(0)]
CASES = int(os.environ.get("HF_MULTITASK_FUZZ_CASES", "300"))
STEPS = int(os.environ.get("HF_MULTITASK_FUZZ_STEPS", "60"))

VALUES = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e308, 10**20, float("nan"), float("inf"), "", " ", "a", "O", "B-X",
    "None", "NA", "0", "1", "true", "\ud83d\ude00", "x" * 3000, "a\u0301", "\r\n", "\x00", "</s>", "[SEP]", "[MASK]",
    "../../etc", "$HOME", "**", [], [[]], [0, 1], [1.0, 0.0], ["a"], ["a", None], {}, {"a": 1}, {"start": 0, "end": 1},
    [{"start": 0, "end": 2, "label": "X"}], [{"start": 5, "end": 2, "label": "X"}], [[0, 2, "X"]],
    {"text": ["a"], "answer_start": [0]}, {"text": [], "answer_start": []}, {"text": ["a"], "answer_start": ["0"]},
]  # fmt: skip
ROW = {
    "text": "Ada met Bob in Oslo.",
    "other": "a second text",
    "label": "pos",
    "set": ["x"],
    "number": 1.5,
    "tokens": ["Ada", "met", "Bob"],
    "tags": ["B-X", "O", "B-X"],
    "spans": [{"start": 0, "end": 3, "label": "X"}],
    "question": "who?",
    "context": "Ada met Bob.",
    "answers": {"text": ["Ada"], "answer_start": [0]},
    "choices": ["one", "two"],
    "right": 1,
}
TASKS = {
    "topic": {"type": "sequence-classification"},
    "set": {"type": "sequence-classification", "label_column": "set"},
    "number": {"type": "sequence-classification", "label_column": "number"},
    "pair": {"type": "sequence-classification", "text_pair_column": "other"},
    "words": {"type": "token-classification", "tags_column": "tags"},
    "spans": {"type": "token-classification", "text_column": "text", "spans_column": "spans"},
    "answer": {"type": "question-answering"},
    "choice": {"type": "multiple-choice", "question_column": "text", "label_column": "right"},
    "near": {
        "type": "sentence-similarity",
        "text_column": "text",
        "text_pair_column": "other",
        "label_column": "number",
    },
    "mask": {"type": "fill-mask"},
}
TRAINING = {
    "output_dir": "out", "max_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True,
    "per_device_train_batch_size": 4, "gradient_logging_steps": 0, "save_strategy": "no",
}  # fmt: skip
COLUMNS = {
    "topic": ["text", "label"], "set": ["text", "set"], "number": ["text", "number"], "pair": ["text", "other", "label"],
    "words": ["tokens", "tags"], "spans": ["text", "spans"], "answer": ["question", "context", "answers"],
    "choice": ["text", "choices", "right"], "near": ["text", "other", "number"], "mask": ["text"],
}  # fmt: skip


def rows_for(columns, draw, odd=2):
    rows = [{column: ROW[column] for column in columns} for _ in range(6)]
    for number, row in enumerate(rows):
        if "label" in row:
            row["label"] = ["pos", "neg"][number % 2]
        if "number" in row:
            row["number"] = float(number)
        if "set" in row:
            row["set"] = [["x"], ["y"], ["x", "y"]][number % 3]
    for _ in range(draw.randint(0, odd)):
        row = draw.choice(rows)
        what = draw.random()
        column = draw.choice(columns)
        if what < 0.8:
            row[column] = draw.choice(VALUES)
        elif what < 0.9:
            row.pop(column, None)
        elif isinstance(row.get(column), list) and row[column]:
            row[column] = [draw.choice(VALUES), *row[column][1:]]
    return rows


def write_recipe(folder, backbone, tasks, draw, training=TRAINING, odd=2):
    datasets = {}
    for name in tasks:
        for split in ("train", "validation"):
            lines = [json.dumps(row) for row in rows_for(COLUMNS[name], draw, odd)]
            (folder / f"{name}-{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        datasets[name] = {
            "path": "json",
            "data_files": {split: f"{name}-{split}.jsonl" for split in ("train", "validation")},
        }
    recipe = {
        "backbone": backbone, "datasets": datasets, "tasks": {name: TASKS[name] for name in tasks}, "training": training,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(folder / "recipe.yaml")


@pytest.fixture
def backbone(backbone_path, tmp_path):
    """A backbone that every type of task was trained on once, so that what a run imports is there before the forks."""
    folder = tmp_path / "warm"
    folder.mkdir()
    recipe = write_recipe(folder, backbone_path("bert"), list(TASKS), random.Random(0), odd=0)
    assert main(["train", recipe]) == 0
    return backbone_path("bert")


def test_rows(backbone, tmp_path):
    def make(number, folder):
        draw = random.Random(number)
        recipe = write_recipe(folder, backbone, draw.sample(list(TASKS), draw.randint(1, 3)), draw)
        return lambda: main(["train", recipe])

    assert run_cases("rows", STEPS, make, tmp_path) == []


def test_arguments(backbone, tmp_path):
    from dataclasses import fields

    from hf_multitask import MultiTaskTrainingArguments

    # Not those that talk to other machines, wait on purpose, or start other processes.
    left_out = ("hub", "push", "deepspeed", "fsdp", "ddp", "accelerator", "compile", "report_to", "dataloader", "debug")
    names = [f.name for f in fields(MultiTaskTrainingArguments) if f.init and not f.name.startswith(left_out)]
    plain = [value for value in VALUES if isinstance(value, str | int | float) and "\x00" not in str(value)]

    def make(number, folder):
        draw = random.Random(number)
        recipe = write_recipe(folder, backbone, ["topic"], draw, odd=0)
        words = []
        for _ in range(draw.randint(1, 3)):
            words += [f"--{draw.choice(names)}", str(draw.choice(plain)).encode("utf-8", "ignore").decode()]
        words += ["--output_dir", str(folder / "out"), "--max_steps", "1", "--num_train_epochs", "1"]
        return lambda: main(["train", recipe, *words])

    with torch.compiler.set_stance("force_eager"):  # a compilation takes longer than a case may
        assert run_cases("arguments", STEPS, make, tmp_path) == []


def _changed(value, draw):
    """A JSON value with one of its parts replaced, left out or added."""
    places = []

    def walk(part):
        if isinstance(part, dict):
            for key, inner in part.items():
                places.append((part, key))
                walk(inner)
        elif isinstance(part, list):
            for index, inner in enumerate(part):
                places.append((part, index))
                walk(inner)

    walk(value)
    owner, key = draw.choice(places)
    what = draw.random()
    if what < 0.75:
        owner[key] = draw.choice([*VALUES, 10**9, 10**12, -5, 1.5])
    elif what < 0.9:
        del owner[key]
    elif isinstance(owner, dict):
        owner[draw.choice(["x", "dtype", "auto_map", "hidden_size", "num_hidden_layers"])] = draw.choice(VALUES)


@pytest.fixture
def saved(backbone, tmp_path):
    """A recipe and the folder of a run that has two checkpoints."""
    folder = tmp_path / "saved"
    folder.mkdir()
    training = {**TRAINING, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    recipe = write_recipe(folder, backbone, ["topic", "words"], random.Random(0), training, odd=0)
    assert main(["train", recipe]) == 0
    return recipe, folder / "out"


def test_configurations(saved, tmp_path):
    _, model = saved
    text = (model / "config.json").read_text()

    def make(number, folder):
        draw = random.Random(number)
        shutil.copytree(model, folder / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
        values = json.loads(text)
        for _ in range(draw.randint(1, 2)):
            _changed(values, draw)
        (folder / "model" / "config.json").write_text(json.dumps(values))
        return lambda: main(["predict", str(folder / "model"), "Ada met Bob."])

    assert run_cases("configurations", CASES, make, tmp_path) == []


def test_checkpoints(saved, tmp_path):
    recipe, out = saved

    def make(number, folder):
        draw = random.Random(number)
        shutil.copytree(out, folder / "out")
        files = [path for path in sorted((folder / "out" / "checkpoint-2").rglob("*")) if path.is_file()]
        for path in draw.sample(files, draw.randint(1, 2)):
            content = bytearray(path.read_bytes())
            what, place = draw.random(), draw.randrange(max(len(content), 1))
            if what < 0.25:
                path.unlink()
                continue
            if what < 0.5:
                content = content[:place]
            elif what < 0.75:
                content[place:] = bytes(len(content) - place)
            else:
                for _ in range(draw.randint(1, 4)):
                    content[draw.randrange(len(content))] = draw.randrange(256)
            path.write_bytes(content)
        words = ["--output_dir", str(folder / "out"), "--resume_from_checkpoint", "true", "--max_steps", "3"]
        return lambda: main(["train", recipe, *words])

    assert run_cases("checkpoints", STEPS, make, tmp_path) == []
