"""A task whose loss is NaN or infinite is left out of the step, counted and told; nothing of it reaches the weights."""

import logging
import math

import pytest
import torch
from balancers import CASES, IDS, balancing, relative_difference, weights_of
from datasets import Dataset
from tiny import read_rows
from transformers import AutoTokenizer

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification

HUGE = 1e30  # its square is infinite in float32


@pytest.fixture
def build(backbone_path, arguments):
    """Reviews and their length in stars; some rows, by number, have a length beyond all measure."""

    def make(bad=(), count=32, both=False, **kwargs):
        path = backbone_path()
        torch.manual_seed(1)
        dataset = "reviews" if both else None
        tasks = {
            "sentiment": SequenceClassification(label_names=["negative", "positive"], dataset=dataset),
            "stars": SequenceClassification(problem_type="regression", label_column="stars", dataset=dataset),
        }
        rows = read_rows("sentiment", "train", count)
        stars = [{**row, "stars": HUGE if place in bad else len(row["text"]) / 100} for place, row in enumerate(rows)]
        return MultiTaskTrainer(
            MultiTaskModel.from_backbone(path, tasks=tasks, dropout=0.0),
            arguments(**{"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, **kwargs}),
            train_dataset={"reviews": Dataset.from_list(stars)}
            if both
            else {"sentiment": Dataset.from_list(rows), "stars": Dataset.from_list(stars)},
            eval_dataset={name: Dataset.from_list(stars[:2]) for name in (["reviews"] if both else tasks)},
            processing_class=AutoTokenizer.from_pretrained(path),
        )

    return make


@pytest.mark.parametrize("aggregation", ["none", "sum"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("batch", "accumulation"), [(64, 1), (8, 8)])
def test_the_other_tasks_go_on_as_if_it_had_no_row(batch, accumulation, both, aggregation, build, caplog):
    args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "both": both}
    args["aggregation"] = aggregation
    without = build(task_weights={"stars": 0.0}, **args)
    without.train()
    with caplog.at_level(logging.WARNING):
        trainer = build(bad={5, 9}, **args)
        start = weights_of(trainer)
        trainer.train()
    assert relative_difference(weights_of(without), weights_of(trainer)) < 1e-6
    assert relative_difference(start, weights_of(trainer)) > 1e-4
    for name, value in weights_of(trainer).items():
        assert not name.startswith("heads.stars") or torch.equal(value, start[name])
    source = "reviews" if both else "stars"
    said = (
        f"Task 'stars': its loss is inf in step 1, from rows 5, 9 of the training data of '{source}'. The step goes on"
    )
    assert said in caplog.text and "does not fit" not in caplog.text
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log["stars_left_out"] == 1 and "stars_loss" not in log and "sentiment_left_out" not in log
    assert log["loss"] == pytest.approx(log["sentiment_loss"], rel=1e-5)
    assert trainer.progress.non_finite == {"stars": {"steps": 1, "in_a_row": 1}}


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)
def test_nothing_poisoned_reaches_a_balancer(name, kwargs, build):
    args = balancing(name, {"weights": {"stars": 2.0}} if name == "fixed" else kwargs)
    if name == "scale":
        args["balancing_kwargs"] = {"losses": {"sentiment": 0.7, "stars": 1.0}}
    trainer = build(bad={3}, max_steps=8, per_device_train_batch_size=8, optim="adamw_torch", **args)
    trainer.train()
    assert trainer.progress.non_finite["stars"]["steps"] == 1 and trainer.progress.non_finite["stars"]["in_a_row"] == 0
    assert all(value.isfinite().all() for value in weights_of(trainer).values())

    def numbers(state):
        if isinstance(state, dict | list):
            for value in state.values() if isinstance(state, dict) else state:
                yield from numbers(value)
        elif isinstance(state, float):
            yield state

    state = list(numbers(trainer.balance.state_dict()))
    assert all(math.isfinite(value) and abs(value) < 1e12 for value in state) and state


def test_training_stops_after_so_many_such_steps_in_a_row(build, tmp_path):
    message = (
        r"Task 'stars': its loss is inf in step 3, from rows (\d+, )+\d+ and \d+ more of the training data of 'stars'. It "
        r"is the last of 3 such steps in a row, so training stops. Mend the rows"
    )
    args = {"bad": range(96), "count": 96, "max_steps": 9, "per_device_train_batch_size": 32}
    trainer = build(**args, save_strategy="steps", save_steps=1)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 2
    assert all(value.isfinite().all() for value in weights_of(trainer).values())
    with pytest.raises(ValueError, match=message):  # a checkpoint keeps the count
        build(**args).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    with pytest.raises(ValueError, match=r"in step 1, .* It is the last of 1 such steps"):
        build(**args, non_finite_patience=1).train()
    with pytest.raises(ValueError, match=r"`non_finite_patience` should be a whole number of steps, 1 or more."):
        build(non_finite_patience=0)


def test_a_step_that_loses_every_task_trains_nothing(build, backbone_path, arguments):
    rows = Dataset.from_list([{"text": f"row {row}", "label": HUGE if row < 8 else 1.0} for row in range(16)])
    tasks = {"a": SequenceClassification(problem_type="regression")}
    trainer = MultiTaskTrainer(
        MultiTaskModel.from_backbone(backbone_path(), tasks=tasks),
        arguments(max_steps=1, per_device_train_batch_size=16, weight_decay=0.1, balancing="uncertainty"),
        train_dataset={"a": rows},
        processing_class=AutoTokenizer.from_pretrained(backbone_path()),
    )
    start = weights_of(trainer)
    trainer.train()
    assert all(torch.equal(value, start[name]) for name, value in weights_of(trainer).items())
    assert trainer.balance.balancer.state_dict()["learned_K"] == [0.0]


def test_rows_of_the_backbone_that_overflow_take_no_other_task_with_them(build):
    """Infinite states of a row are gone with it: in a sum over rows, 0 times infinity is NaN."""
    trainer = build(max_steps=1, per_device_train_batch_size=32, gradient_accumulation_steps=2)
    tokenizer, model = trainer.processing_class, trainer.model
    rows = trainer.train_dataset.datasets
    own = {name: {token for ids in part.rows["input_ids"] for token in ids} for name, part in zip(("s", "n"), rows)}
    assert own["s"] == own["n"]  # the same texts, so a word of their own has to be made
    word = tokenizer.convert_tokens_to_ids("[MASK]")
    rows[1].rows = rows[1].rows.map(
        lambda row, place: {"input_ids": [*row["input_ids"][:-1], word] if place == 4 else row["input_ids"]},
        with_indices=True,
    )
    with torch.no_grad():
        model.backbone.embeddings.word_embeddings.weight[word] = math.inf
    trainer.train()
    assert trainer.progress.non_finite["stars"]["steps"] == 1
    finite = {name: bool(value.isfinite().all()) for name, value in weights_of(trainer).items()}
    assert [name for name, good in finite.items() if not good] == ["backbone.embeddings.word_embeddings.weight"]
