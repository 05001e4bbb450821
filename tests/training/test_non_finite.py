"""A task whose loss or gradient is not finite is left out of the step, counted and told; the weights see none of it."""

import itertools
import logging
import math
import re

import pytest
import torch
from balancers import CASES, IDS, QUICK, balancing, relative_difference, weights_of
from datasets import Dataset
from parameters import few
from rooting import MASK, add_root
from tiny import read_rows
from transformers import AutoTokenizer, TrainerCallback

from hf_multitask import MultiTaskModel, MultiTaskPipeline, MultiTaskTrainer, SequenceClassification
from hf_multitask.modeling.finite import WeightsError, check_weights
from hf_multitask.training.step.guard import LossError, failing_items

HUGE = 1e30  # its square is infinite in float32


@pytest.fixture
def build(backbone_path, arguments):
    """Reviews and their length in stars; some rows, by number, have a length beyond all measure, or a mask.

    Where ``rooted``, the gradient of the rows with a mask is NaN, and their loss is not.
    """

    def make(bad=(), masked=(), rooted=False, count=32, both=False, **kwargs):
        path = backbone_path()
        torch.manual_seed(1)
        dataset = "reviews" if both else None
        tasks = {
            "sentiment": SequenceClassification(label_names=["negative", "positive"], dataset=dataset),
            "stars": SequenceClassification(problem_type="regression", label_column="stars", dataset=dataset),
        }
        rows = read_rows("sentiment", "train", count)
        stars = [{**row, "stars": HUGE if place in bad else len(row["text"]) / 100} for place, row in enumerate(rows)]
        for place in masked:
            stars[place]["text"] += f" {MASK}"
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = MultiTaskModel.from_backbone(path, tasks=tasks, dropout=0.0)
        if rooted:
            add_root(model, "stars", tokenizer)
        return MultiTaskTrainer(
            model,
            arguments(**{"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, **kwargs}),
            train_dataset={"reviews": Dataset.from_list(stars)}
            if both
            else {"sentiment": Dataset.from_list(rows), "stars": Dataset.from_list(stars)},
            eval_dataset={name: Dataset.from_list(stars[:2]) for name in (["reviews"] if both else tasks)},
            processing_class=tokenizer,
        )

    return make


@pytest.mark.parametrize(
    ("batch", "accumulation", "both", "aggregation"),
    few(
        [
            (*layout, *more)
            for layout in ((64, 1), (8, 8))
            for more in itertools.product((False, True), ("none", "sum"))
        ],
        [(8, 8, False, "none"), (64, 1, True, "none"), (8, 8, True, "sum")],
    ),
)
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
    said = f"Task 'stars': its loss is inf in step 1, from rows 5, 9 of the training data of '{source}'. The step continues"
    assert said in caplog.text and "does not fit" not in caplog.text
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log["stars_left_out"] == 1 and "stars_loss" not in log and "sentiment_left_out" not in log
    assert log["loss"] == pytest.approx(log["sentiment_loss"], rel=1e-5)
    assert trainer.progress.non_finite == {"stars": {"steps": 1, "in_a_row": 1}}


@pytest.mark.parametrize(("name", "kwargs"), few(CASES, QUICK, IDS))
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

    state = list(numbers(trainer.engine.weights.state_dict()["balancing"]))
    assert all(math.isfinite(value) and abs(value) < 1e12 for value in state) and state


def test_training_stops_after_so_many_such_steps_in_a_row(build, tmp_path):
    message = (
        r"Task 'stars': its loss is inf in step 3, from rows (\d+, )+\d+ and \d+ more of the training data of 'stars'. It "
        r"is the last of 3 such steps in a row, so training stops. Fix the rows"
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
    assert trainer.engine.weights.balancer.state_dict()["learned_K"] == [0.0]


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
    with pytest.raises(
        WeightsError, match=r"^Weight 'backbone.*word_embeddings.weight' is NaN or infinite in 32 of its "
    ):
        trainer.train()
    assert trainer.progress.non_finite["stars"]["steps"] == 1
    finite = {name: bool(value.isfinite().all()) for name, value in weights_of(trainer).items()}
    assert [name for name, good in finite.items() if not good] == ["backbone.embeddings.word_embeddings.weight"]


ROOTED = {
    "apart": (False, 64, 1, {}),
    "shared": (True, 8, 8, {}),
    "balancer": (False, 8, 8, {"balancing": "uncertainty", "balancing_kwargs": {"exact": True}}),
    "sum": (True, 64, 1, {"aggregation": "sum"}),
    "pcgrad": (False, 8, 8, {"aggregation": "pcgrad"}),
}


@pytest.mark.parametrize(
    ("both", "batch", "accumulation", "more", "max_grad_norm"),
    few(
        [(*case, norm) for case, norm in itertools.product(ROOTED.values(), (0.0, 1.0))],
        ["apart-0.0", "shared-1.0", "balancer-1.0", "pcgrad-0.0"],
        [f"{name}-{norm}" for name, norm in itertools.product(ROOTED, (0.0, 1.0))],
    ),
)
def test_a_gradient_that_is_not_finite_under_a_finite_loss(
    both, batch, accumulation, more, max_grad_norm, build, caplog
):
    args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "masked": (5, 9)}
    args |= {"both": both, "max_grad_norm": max_grad_norm, **more}
    without = build(task_weights={"stars": 0.0}, **args)
    without.train()
    with caplog.at_level(logging.WARNING):
        trainer = build(rooted=True, **args)
        start = weights_of(trainer)
        trainer.train()
    if "balancing" not in more:  # whose weights are over the tasks that are left
        assert relative_difference(without_head(without), without_head(trainer)) < 1e-6
    assert relative_difference(start, weights_of(trainer)) > 1e-4
    for name, value in weights_of(trainer).items():
        assert value.isfinite().all()
        assert not name.startswith("heads.stars") or torch.equal(value, start[name])
    said = r"Task 'stars': its gradient is not finite, under a loss of \d\S*, in step 1, from rows 5, 9 of the training"
    assert re.search(said, caplog.text) and "found no update" not in caplog.text
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log["stars_left_out"] == 1 and "stars_loss" not in log and math.isfinite(log["grad_norm"])
    assert trainer.progress.non_finite == {"stars": {"steps": 1, "in_a_row": 1}}


def without_head(trainer):
    return {name: value for name, value in weights_of(trainer).items() if not name.startswith("heads.stars")}


def test_gradients_that_are_never_finite_stop_a_training(build, tmp_path):
    args = {"rooted": True, "masked": range(32), "max_steps": 9, "save_strategy": "steps", "save_steps": 1}
    trainer = build(**args)
    with pytest.raises(LossError, match=r"'stars': its gradient is not finite, .* in step 3, .* last of 3 such steps"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert all(value.isfinite().all() for value in weights_of(trainer).values())
    with pytest.raises(LossError, match=r"in step 3, .* last of 3 such steps"):  # a checkpoint keeps the count
        build(**args).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_a_gradient_of_no_task_alone_skips_the_step(build, caplog):
    """A hook on a shared weight poisons the gradient of every task; the optimizer, its momentum too, stays as it is."""
    trainer = build(max_steps=2, optim="adamw_torch", weight_decay=0.1)
    weight = trainer.model.backbone.embeddings.word_embeddings.weight
    weight.register_hook(lambda gradient: gradient * math.nan if trainer.state.global_step == 1 else None)
    steps = []
    trainer.add_callback(Watching(lambda: steps.append(weights_of(trainer))))
    trainer.train()
    assert all(torch.equal(steps[0][name], value) for name, value in steps[1].items())
    assert {name: counts["steps"] for name, counts in trainer.progress.non_finite.items()} == {
        "sentiment": 1,
        "stars": 1,
    }


class Watching(TrainerCallback):
    def __init__(self, see):
        self.see = see

    def on_step_end(self, args, state, control, **kwargs):
        self.see()


def test_the_norm_is_measured_once_a_step(build, monkeypatch):
    trainer = build(max_steps=3, per_device_train_batch_size=16, gradient_logging_steps=0)
    clips, clip = [], trainer.accelerator.clip_grad_norm_
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", lambda *given: clips.append(clip(*given)) or clips[-1])
    trainer.train()
    assert len(clips) == 3
    assert [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry] == pytest.approx(
        [float(norm) for norm in clips]
    )


@pytest.mark.parametrize("bad", [(), (3,), (0, 7, 8), range(40), range(1000)])
def test_failing_items_are_found_by_halves(bad):
    runs = []

    def fails(items):
        runs.append(items)
        return any(item in bad for item in items)

    found = failing_items(1000, fails)
    assert set(bad) <= set(found) and len(runs) <= 64
    assert len(bad) > 3 or found == list(bad)


def spoil(trainer, step):
    """An optimizer that makes one weight NaN in a step, as a broken one would."""

    def spoiled(optimizer, *given):
        if trainer.state.global_step + 1 == step:
            with torch.no_grad():
                trainer.model.heads["stars"].native.classifier.weight[0, 0] = math.nan

    trainer.create_optimizer().register_step_post_hook(spoiled)


def test_weights_that_are_not_finite_replace_no_checkpoint(build, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": 4}
    trainer = build(**saves)
    spoil(trainer, 3)
    said = r"^Weight 'heads.stars.native.classifier.weight' is NaN or infinite in 1 of its 32 numbers"
    with pytest.raises(
        WeightsError, match=said + r" after step 3, so nothing is saved, and the checkpoints before stay"
    ):
        trainer.train()
    out = tmp_path / "out"
    assert [path.name for path in sorted(out.glob("checkpoint-*"))] == ["checkpoint-2"]
    good = MultiTaskModel.from_pretrained(out / "checkpoint-2")
    good.save_pretrained(tmp_path / "model")
    before = {path: path.read_bytes() for path in sorted((tmp_path / "model").iterdir())}
    with pytest.raises(WeightsError, match=said + " after step 3, so nothing is saved"):
        trainer.save_model(str(tmp_path / "model"))
    for save in (trainer.model.save_pretrained, trainer.model.push_to_hub):
        with pytest.raises(WeightsError, match=said + ", so the model is not saved, and what was saved before stays"):
            save(str(tmp_path / "model"))
    assert before == {path: path.read_bytes() for path in sorted((tmp_path / "model").iterdir())}
    with pytest.raises(ValueError, match=said + ", so its answers would mean nothing"):
        MultiTaskPipeline(model=trainer.model, tokenizer=trainer.processing_class)
    with pytest.raises(
        ValueError, match=r"^Weight 'classifier.weight' is NaN or infinite in 1 of its 32 numbers, so the"
    ):
        trainer.model.export_task("stars", tmp_path / "stars")
    assert not (tmp_path / "stars").exists()
    again = build(**saves)
    again.train(resume_from_checkpoint=True)  # from the checkpoint that stayed
    assert again.state.global_step == 4
    last = build(max_steps=2)
    spoil(last, 2)
    with pytest.raises(WeightsError, match=said + " after step 2, so the training that ends with it has failed"):
        last.train()


def test_masks_may_hold_infinities_and_weights_may_be_large():
    model = torch.nn.BatchNorm1d(2)
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    with torch.no_grad():
        model.weight.fill_(3e38)  # whose sum is infinite
    check_weights(model, "so no.")
    model.running_mean[1] = math.nan
    with pytest.raises(WeightsError, match=r"^Weight 'running_mean' is NaN or infinite in 1 of its 2 numbers, so no.$"):
        check_weights(model, "so no.")


SCALES = [(2.0**127, 3, 0), (4.0, 2, 1), (1.0, 0, 3)]


@pytest.mark.parametrize(
    ("scale", "skipped", "left_out", "aggregation"),
    few(
        [(*case, name) for case, name in itertools.product(SCALES, ("none", "pcgrad"))],
        [(*SCALES[0], "none"), (*SCALES[1], "pcgrad"), (*SCALES[2], "none")],
    ),
)
def test_a_step_that_the_scaler_of_fp16_skips_is_no_fault(
    scale, skipped, left_out, aggregation, build, monkeypatch, caplog
):
    """On the CPU, where accelerate itself makes no scaler: the search begins where no scale is left to be too large."""
    masked, rows = (5,) if left_out else (), 64  # of all steps
    trainer = build(masked=masked, rooted=True, max_steps=3, aggregation=aggregation, per_device_train_batch_size=rows)
    trainer.args.non_finite_patience, accelerator = 9, trainer.accelerator
    monkeypatch.setattr(accelerator, "scaler", torch.amp.GradScaler("cpu", init_scale=scale))
    monkeypatch.setattr(accelerator, "native_amp", True)
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
    states = [weights_of(trainer)]
    trainer.add_callback(Watching(lambda: states.append(weights_of(trainer))))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    same = [
        all(torch.equal(value, new[name]) for name, value in old.items()) for old, new in itertools.pairwise(states)
    ]
    assert same == [True] * skipped + [False] * (3 - skipped)
    assert trainer.progress.non_finite.get("stars", {}).get("steps", 0) == left_out
    assert "sentiment" not in trainer.progress.non_finite and "found no update" not in caplog.text
    assert caplog.text.count("from row 5 of the training data") == left_out
