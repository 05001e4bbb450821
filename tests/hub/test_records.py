"""Flat keys and what they are of, for tasks whose names begin like keys of the Trainer's or like each other."""

import itertools
import json

import pytest
from datasets import Dataset
from tiny import read_rows
from transformers import AutoTokenizer

from hf_multitask import MultiTaskTrainer, SequenceClassification
from hf_multitask.cli.shown import show_metrics
from hf_multitask.hub.history import curves, gradients, results
from hf_multitask.hub.records import TRAINING, average_of, by_task, flat, is_end, key_of, pair_key, pairs, prefix_of
from hf_multitask.training.report.console import MANY, summarize

# Beginnings of the Trainer's own keys, words of ours, and names that begin each other.
NAMES = ("grad", "learning", "train", "eval", "test", "cosine", "steps", "samples", "num_input", "total")
NESTED = ("a", "a_b", "a_grad", "a_b_grad", "a_eval", "loss", "eval_a")
TASKS = [*NAMES, *NESTED]
OF_TRAINER = {
    "loss": 3.0,
    "grad_norm": 1.5,
    "learning_rate": 1e-4,
    "num_input_tokens_seen": 9,
    "epoch": 0.5,
    "step": 2,
}
AT_THE_END = {"train_runtime": 1.0, "train_loss": 2.0, "train_samples_per_second": 1.0, "total_flos": 1.0, "step": 2}


def numbered(metrics):
    """A value of its own for every task and metric."""
    count = itertools.count(1)
    return {task: {metric: next(count) / 1000 for metric in metrics(task)} for task in TASKS}


TRAINED = numbered(lambda task: TRAINING)
# What only the names of the metrics tell: `eval_a_b_recall` is of the task `a`, as `a_b` has no recall.
MEASURES = {task: ["loss", "f1", {"a": "b_recall", "a_b": "precision"}.get(task, "recall")] for task in TASKS}
MEASURED = numbered(MEASURES.get)


def training_log():
    return {**OF_TRAINER, **flat(TRAINED), pair_key("a", "a_grad"): 0.25, pair_key("cosine", "grad"): -0.5}


def evaluation_log(prefix="eval"):
    speed = {f"{prefix}_runtime": 1.0, f"{prefix}_samples_per_second": 2.0, f"{prefix}_steps_per_second": 3.0}
    return {**flat(MEASURED, prefix), f"{prefix}_average": 0.5, **speed, "epoch": 0.5, "step": 2}


def test_keys_are_those_that_logs_always_had():
    assert key_of("ner", "loss") == "ner_loss" and key_of("ner", "f1", "eval") == "eval_ner_f1"
    assert flat({"a": {"loss": 1.0, "f1": 0.5}}, "test") == {"test_a_loss": 1.0, "test_a_f1": 0.5}
    assert pair_key("a", "b_c") == "cosine/a/b_c"


def test_a_log_of_training_gives_back_what_it_was_made_of():
    own, rest = by_task(training_log(), TASKS)
    assert own == TRAINED
    assert rest == {**OF_TRAINER, "cosine/a/a_grad": 0.25, "cosine/cosine/grad": -0.5}
    assert pairs(training_log()) == {("a", "a_grad"): 0.25, ("cosine", "grad"): -0.5}
    assert pairs({"cosine/mean": 0.1}) == {}


@pytest.mark.parametrize("prefix", ["eval", "test", "train", "my_own"])
def test_a_log_of_an_evaluation_gives_back_what_it_was_made_of(prefix):
    log = evaluation_log(prefix)
    own, rest = by_task(log, TASKS, MEASURES)
    assert own == MEASURED and not is_end(log)
    assert set(rest) == {"epoch", "step", *(f"{prefix}_{word}" for word in ("average", "runtime"))} | {
        f"{prefix}_{word}_per_second" for word in ("steps", "samples")
    }
    assert prefix_of(log) == prefix and average_of(log) == 0.5


def test_without_names_of_metrics_the_longest_task_owns_a_metric_and_the_trainer_its_speed():
    own, rest = by_task(evaluation_log(), TASKS)
    assert own["a_b"] == {**MEASURED["a_b"], "recall": MEASURED["a"]["b_recall"]}
    assert set(own["samples"]) == set(own["steps"]) == {"loss", "f1", "recall"}
    assert "eval_runtime" in rest


def test_the_end_of_training_says_nothing_of_a_task_named_train():
    assert is_end(AT_THE_END) and by_task(AT_THE_END, TASKS) == ({}, AT_THE_END)


def test_card_reads_figures_and_curves_of_every_task():
    history = [training_log(), evaluation_log(), AT_THE_END, evaluation_log("test")]
    found = {(one.split, one.task, one.metric): one.value for one in results(history, TASKS, MEASURES)}
    assert found == {
        (split, task, metric): value
        for split in ("validation", "test")
        for task, of in [*MEASURED.items(), (None, {"average": 0.5})]
        for metric, value in of.items()
    }
    losses, metrics = curves(history, TASKS, MEASURES)
    assert losses == {task: [(2, of["loss"])] for task, of in TRAINED.items()}
    assert metrics == {task: ("f1", [(2, of["f1"])]) for task, of in MEASURED.items()}
    norms, cosines = gradients(history, TASKS)
    assert norms == {task: [(2, of["grad_norm"])] for task, of in TRAINED.items()}
    assert cosines == {("a", "a_grad"): 0.25, ("cosine", "grad"): -0.5}


def test_consoles_rank_every_task_by_its_own_figure(capsys):
    summary = summarize(training_log(), TASKS, MEASURES)
    assert summary["tasks"] == len(TASKS) and summary["learning_rate"] == 1e-4 and summary["grad_norm"] == 1.5
    assert summary["best_loss"].startswith(f"grad {TRAINED['grad']['loss']:.4g}, ")
    summary = summarize(evaluation_log(), TASKS, MEASURES)
    assert summary["worst_primary"].startswith(f"grad {MEASURED['grad']['f1']:.4g}, ")
    assert summary["mean_primary"] == pytest.approx(sum(of["f1"] for of in MEASURED.values()) / len(TASKS))
    assert len(TASKS) <= MANY
    show_metrics({"validation": evaluation_log(), "test": evaluation_log("test")}, TASKS, MEASURES)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["task", "metric", "validation", "test"],
        *([task, metric, *[f"{value:.4f}"] * 2] for task, of in MEASURED.items() for metric, value in of.items()),
        ["average", "0.5000", "0.5000"],
    ]


def test_a_run_with_such_tasks_is_read_back_from_all_that_it_leaves(build_model, backbone_path, arguments, tmp_path):
    names = ["grad", "learning", "cosine", "test", "a", "a_b", "a_grad"]
    rows = [read_rows("sentiment", "train", 4 + 2 * place) for place in range(len(names))]
    data = {name: Dataset.from_list(of) for name, of in zip(names, rows, strict=True)}
    tasks = {name: SequenceClassification(label_names=["negative", "positive"]) for name in names}
    trainer = MultiTaskTrainer(
        build_model(tasks=tasks),
        arguments(max_steps=2, gradient_logging_steps=1, per_device_train_batch_size=32, eval_strategy="epoch"),
        train_dataset=data,
        eval_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(backbone_path()),
        compute_metrics={"a": lambda prediction: {"b_recall": 0.25, "b_f2": 0.125}},
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.create_model_card()
    trained = [by_task(entry, names)[0] for entry in trainer.state.log_history if "loss" in entry]
    assert [set(own) for own in trained] == [set(names)] * 2
    assert all(set(of) <= set(TRAINING) and of["rows"] for own in trained for of in own.values())
    own, rest = by_task(metrics, names, trainer.progress.metrics)
    assert {name: list(of) for name, of in own.items()} == trainer.progress.metrics
    assert own["a"] == {"loss": metrics["eval_a_loss"], "b_recall": 0.25, "b_f2": 0.125}
    assert set(rest) == {"eval_average", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "epoch"}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    table = {tuple(cell.strip() for cell in line.split("|")[1:3]): line for line in card.splitlines() if "|" in line}
    for task, of in own.items():
        for metric, value in of.items():
            assert f"{value:.4f}" in table[task, metric]
    state = json.loads(json.dumps(trainer.state.log_history))  # as a checkpoint keeps it
    losses, _ = curves(state, names, trainer.progress.metrics)
    assert losses == {
        name: [(entry["step"], entry[f"{name}_loss"]) for entry in state if f"{name}_loss" in entry and "loss" in entry]
        for name in names
    }
    assert set(gradients(state, names)[0]) == set(names)
