"""Models of many tasks: logs that one can read, with all of it in a file, and every name in the results."""

import json

import pytest
import torch
from datasets import Dataset
from tiny import read_rows
from transformers import AutoTokenizer, ProgressCallback

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification
from hf_multitask.cli.shown import show_metrics
from hf_multitask.hub.records import by_task
from hf_multitask.training.report.console import FEW, MANY, summarize


def names(count):
    return [f"t{number:04d}" for number in range(count)]


@pytest.fixture
def build(build_model, backbone_path, arguments):
    def make(count, rows=2, **kwargs):
        texts = [row["text"] for row in read_rows("sentiment", "train", 50)]
        data = {
            name: Dataset.from_dict(
                {
                    "text": [texts[(place + row) % len(texts)] for row in range(rows)],
                    "label": [["no", "yes"][(place + row) % 2] for row in range(rows)],
                }
            )
            for place, name in enumerate(names(count))
        }
        model = build_model(tasks={name: SequenceClassification(label_names=["no", "yes"]) for name in data})
        return MultiTaskTrainer(
            model,
            arguments(**kwargs),
            train_dataset=data,
            eval_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(backbone_path()),
        )

    return make


def lines_of(folder):
    return [json.loads(line) for line in (folder / "out" / "task_metrics.jsonl").read_text().splitlines()]


def test_console_shows_a_summary_and_the_file_and_the_history_everything(build, tmp_path, capsys):
    trainer = build(60, max_steps=4, logging_steps=2)
    trainer.train()
    metrics = trainer.evaluate()
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) < 500
    assert "... 54 more" in shown
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 4]
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    for line, entry in zip(lines[:2], logged):
        seen = {task for task, found in line["tasks"].items() if "loss" in found}
        assert {f"{task}_loss" for task in seen} == {key for key in entry if key.endswith("_loss")}
        assert list(line["tasks"]) == names(60)
        assert line["metrics"]["loss"] == entry["loss"]
    assert list(lines[-1]["tasks"]) == names(60)
    for task, found in lines[-1]["tasks"].items():
        assert found == {metric: metrics[f"eval_{task}_{metric}"] for metric in ("loss", "accuracy", "macro_f1", "f1")}
    worst = min(metrics[f"eval_{name}_accuracy"] for name in names(60))
    assert "'worst_primary': 't" in shown and f" {worst:.4g}" in shown
    show_metrics({"validation": metrics}, names(60))
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 2 + 2 * FEW * 4 + 1  # a loss and three metrics each


def test_progress_bar_shows_the_summary_too(build, capsys):
    trainer = build(MANY + 1, max_steps=1, disable_tqdm=False)
    assert sum(isinstance(callback, ProgressCallback) for callback in trainer.callback_handler.callbacks) == 1
    trainer.train()
    told = capsys.readouterr()
    assert "worst_loss" in told.out + told.err and "t0000_share" not in told.out + told.err


def test_few_tasks_are_shown_in_full(build, tmp_path, capsys):
    build(MANY, max_steps=1).train()
    assert "t0000_share" in capsys.readouterr().out
    assert not (tmp_path / "out" / "task_metrics.jsonl").exists()


def test_longest_name_owns_a_metric():
    logs = {"eval_a_loss": 1.0, "eval_a_b_loss": 2.0, "eval_a_b_token_accuracy": 0.5, "eval_average": 0.5, "epoch": 1}
    own, rest = by_task(logs, ["a", "a_b", "eval"])
    assert own == {"a": {"loss": 1.0}, "a_b": {"loss": 2.0, "token_accuracy": 0.5}}
    assert rest == {"eval_average": 0.5, "epoch": 1}


def test_summary_names_the_worst_and_the_best():
    losses = {f"{name}_loss": float(place) for place, name in enumerate(names(30))}
    summary = summarize({"loss": 3.0, **losses}, names(30))
    assert summary == {
        "loss": 3.0,
        "tasks": 30,
        "mean_loss": 14.5,
        "worst_loss": "t0029 29, t0028 28, t0027 27",
        "best_loss": "t0000 0, t0001 1, t0002 2",
    }
    measured = {f"eval_{name}_accuracy": place / 30 for place, name in enumerate(names(30))}
    assert summarize({**measured, "eval_average": 0.5}, names(30))["worst_primary"].startswith("t0000 0, t0001 0.03333")


def test_sweep_measures_every_row_of_every_task_once(build):
    trainer = build(30, rows=3, per_device_eval_batch_size=7)
    passes = []
    trainer.model.backbone.register_forward_hook(lambda _, __, output: passes.append(len(output.last_hidden_state)))
    data = raw(trainer)
    output = trainer.predict(data)
    assert passes == [7] * 12 + [6]
    assert list(output) == names(30)
    model, tokenizer = trainer.model.eval(), trainer.processing_class
    for name in ("t0000", "t0013", "t0029"):
        for place, row in enumerate(data[name]):
            with torch.no_grad():
                logits = model(**tokenizer(row["text"], return_tensors="pt", truncation=True), tasks=[name]).logits
            torch.testing.assert_close(torch.tensor(output[name].predictions[place]), logits[name][0])


def raw(trainer):
    texts = [row["text"] for row in read_rows("sentiment", "validation", 50)]
    return {
        name: Dataset.from_dict({"text": texts[place : place + 3], "label": ["no", "yes", "no"]})
        for place, name in enumerate(trainer.tasks)
    }


def test_evaluation_leaves_the_random_state_of_the_training(build):
    trainer = build(3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trainer.evaluate()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_a_thousand_tasks_train_save_and_load_by_name(build, tmp_path):
    trainer = build(1000, max_steps=2, per_device_train_batch_size=32)
    trainer.train()
    assert len([key for key in trainer.evaluate() if key.endswith("_accuracy")]) == 1000
    trainer.save_model(str(tmp_path / "model"))
    loaded = MultiTaskModel.from_pretrained(tmp_path / "model")
    assert list(loaded.heads) == names(1000)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
        if name.startswith("heads.t0100"):
            break
