"""Balancers in training: one update however a step is dealt, resumed to the bit, told what they are promised."""

import json
import math
import re

import pytest
import torch
from balancers import CASES, IDS, QUICK, balancing, relative_difference, weights_of
from datasets import Dataset
from layouts import CHECKPOINTING
from pages import DOCS, files_of
from parameters import few
from safetensors.torch import load_file
from stopping import StopAt
from transformers import AutoTokenizer, TrainerCallback

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification
from hf_multitask.balancing import BALANCING, FAMO, Balancer, GeometricMean
from hf_multitask.training.step.matrix import MatrixGradients


@pytest.fixture
def inverse(import_file):
    """The balancer of docs/balancing.md."""
    return import_file("inverse", files_of("balancing.md")["inverse.py"]).Inverse


@pytest.fixture
def build(build_model, data, arguments, backbone_path):
    """A trainer with NER in few rows of a step, and in none of some."""

    def make(balancer=None, callbacks=None, dropout=0.0, dtype=torch.float64, rows=(46, 2), family="bert", **kwargs):
        return MultiTaskTrainer(
            build_model(family, dropout=dropout).to(dtype),
            arguments(**{"max_steps": 5, "per_device_train_batch_size": 16, **kwargs}),
            train_dataset=data(*rows),
            eval_dataset=data(5, 5, "validation"),
            processing_class=AutoTokenizer.from_pretrained(backbone_path(family)),
            balancer=balancer,
            callbacks=callbacks,
        )

    return make


def logs_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("name", "kwargs"), few(CASES, QUICK, IDS))
def test_accumulation_does_not_change_the_update(name, kwargs, build, record_property):
    def run(batch, accumulation):
        args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer = build(task_weights={"ner": 1.5}, **args, **balancing(name, kwargs))
        trainer.train()
        return weights_of(trainer), logs_of(trainer)

    whole, logs = run(16, 1)
    parts, part_logs = run(4, 4)
    record_property("16x1 against 4x4, relative norm", relative_difference(whole, parts))
    assert relative_difference(whole, parts) < 1e-9
    for one, other in zip(logs, part_logs):
        assert one == pytest.approx(other, rel=1e-6)
        total = sum(
            one[f"{task}_weight"] * one[f"{task}_loss"] for task in ("sentiment", "ner") if f"{task}_loss" in one
        )
        assert one["loss"] == pytest.approx(total, rel=1e-5)
    assert any("ner_loss" not in entry for entry in logs) and any("ner_loss" in entry for entry in logs)


@pytest.mark.parametrize(("name", "kwargs"), few(CASES, QUICK, IDS))
def test_resume_is_exact(name, kwargs, build, tmp_path):
    def run(folder, resume=None, **more):
        trainer = build(
            dropout=None,  # the random state is part of a checkpoint
            dtype=torch.float32,
            output_dir=str(tmp_path / folder),
            max_steps=6,
            save_strategy="steps",
            save_steps=4,
            **{**balancing(name, kwargs), **more.pop("args", {})},
            **more,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    run("alone")
    run("stopped", callbacks=[StopAt(4)])
    torch.manual_seed(99)
    run("stopped", resume=True)
    ours, theirs = (
        load_file(tmp_path / folder / "checkpoint-6" / "model.safetensors") for folder in ("stopped", "alone")
    )
    for key, value in theirs.items():
        assert torch.equal(value, ours[key]), key
    states = [
        json.loads((tmp_path / folder / "checkpoint-6" / "multitask_state.json").read_text())["balancing"]
        for folder in ("stopped", "alone")
    ]
    assert states[0] == states[1] and states[0]["tasks"] == ["sentiment", "ner"]


def test_a_checkpoint_of_another_balancing_is_refused(build, tmp_path):
    build(balancing="dwa", save_strategy="steps", save_steps=2, max_steps=2).train()
    message = r"The balancing of this run and of checkpoint '.*checkpoint-2' differ: {} now, DWA then. Put it back."
    with pytest.raises(ValueError, match=message.format("none")):
        build().train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    with pytest.raises(ValueError, match=message.format("FAMO")):
        build(balancing="famo").train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


@pytest.mark.parametrize("balancer", ["uniform", "none"])
def test_without_a_balancer_training_is_the_plain_sum(balancer, build):
    plain, other = build(), build(balancing=balancer)
    plain.train()
    other.train()
    assert all(torch.equal(value, weights_of(other)[name]) for name, value in weights_of(plain).items())


class Spy(Balancer):
    """Writes down all that it is told."""

    reads_losses = looks_back = reads_evaluations = reads_gradients = True
    remembered = ("told",)

    def reset(self):
        self.told, self.given = [], []

    def weights(self, losses_K, present_K):
        self.given.append((losses_K.tolist(), present_K.tolist()))
        return present_K.double()

    def on_gradients(self, norms_K, present_K):
        self.told.append(["gradients", norms_K.tolist()])

    def on_step(self, losses_K, present_K):
        self.told.append(["step", losses_K.tolist(), present_K.tolist()])

    def after_step(self, losses_K, present_K):
        self.told.append(["after", losses_K.tolist(), present_K.tolist()])

    def on_epoch(self):
        self.told.append(["epoch"])

    def on_evaluate(self, losses_K, present_K):
        self.told.append(["evaluation", losses_K.tolist()])


EVALUATES = {"eval_strategy": "steps", "eval_steps": 1}


def test_a_balancer_sees_the_losses_of_the_step_before(build):
    spy = Spy()
    trainer = build(balancer=spy, gradient_accumulation_steps=2, per_device_train_batch_size=8, **EVALUATES)
    trainer.train()
    steps = [entry[1:] for entry in spy.told if entry[0] == "step"]
    logs = logs_of(trainer)
    evaluations = [entry for entry in trainer.state.log_history if "eval_ner_loss" in entry]
    assert len(steps) == len(spy.given) == 5 and spy.given[0][0] == [1.0, 1.0]
    known = {}
    for step, (losses, present) in enumerate(steps):
        assert [f"{name}_loss" in logs[step] for name in ("sentiment", "ner")] == present
        for place, name in enumerate(("sentiment", "ner")):
            if present[place]:
                assert losses[place] == pytest.approx(logs[step][f"{name}_loss"], rel=1e-9)
                known[place] = losses[place]
        if step + 1 < len(steps) and len(known) == 2:
            assert spy.given[step + 1][0] == [known[0], known[1]]
    found = [entry[1] for entry in spy.told if entry[0] == "evaluation"]
    assert found == [[entry["eval_sentiment_loss"], entry["eval_ner_loss"]] for entry in evaluations]
    assert spy.told[-1] == ["epoch"] and spy.told.count(["epoch"]) == 2
    assert not any(entry[0] == "after" for entry in spy.told)


@pytest.mark.parametrize(("batch", "accumulation"), [(16, 1), (4, 4)])
def test_an_exact_balancer_sees_the_step_itself_and_the_same_rows_after_it(batch, accumulation, build):
    spy = Spy(exact=True)
    args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "optim": "sgd"}
    build(balancer=spy, learning_rate=1e-2, **args, **EVALUATES).train()
    steps, after = ([entry[1:] for entry in spy.told if entry[0] == kind] for kind in ("step", "after"))
    assert len(steps) == len(after) == 5
    for (losses, present), given, (then, there) in zip(steps, spy.given, after):
        assert present == given[1] == there
        for place in (0, 1):
            if present[place]:
                assert given[0][place] == pytest.approx(losses[place], rel=1e-12)
                assert then[place] != losses[place] and then[place] == pytest.approx(losses[place], rel=0.5)
        assert sum(loss for loss, here in zip(then, there) if here) < sum(
            loss for loss, here in zip(losses, present) if here
        )


def test_what_an_exact_balancer_measures_moves_no_random_state(build):
    """With dropout on: weights of 1 and further forwards train to the bit what training without them does."""
    args = {"dropout": None, "gradient_accumulation_steps": 2, **EVALUATES}
    plain = build(**args)
    plain.train()
    spied = build(balancer=Spy(exact=True), **args)
    spied.train()
    assert all(torch.equal(value, weights_of(spied)[name]) for name, value in weights_of(plain).items())
    losses = [entry[1] for entry in spied.engine.weights.balancer.told if entry[0] == "step"]
    for given, measured in zip(
        spied.engine.weights.balancer.given, losses
    ):  # the forward before draws what the step draws
        assert given[0][0] == pytest.approx(measured[0], rel=1e-12)


def test_norms_are_those_of_the_summed_gradients(build):
    """Against the gradient of each task alone, by a second trainer that weighs the other with 0."""
    spy = Spy()
    build(balancer=spy, max_steps=1, rows=(20, 12), **EVALUATES).train()
    (norms,) = [entry[1] for entry in spy.told if entry[0] == "gradients"]
    for place, other in enumerate(("ner", "sentiment")):
        found = []

        class Note(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, found=found, **kwargs):
                found.append(float(model.backbone.encoder.layer[1].output.dense.weight.grad.norm()))

        args = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 4, "max_grad_norm": 0.0}
        build(callbacks=[Note()], max_steps=1, rows=(20, 12), task_weights={other: 0.0}, **args).train()
        assert norms[place] == pytest.approx(found[0], rel=1e-9)


@pytest.mark.parametrize("family", few(["bert", "gpt2", "albert", "modernbert"], ["bert", "albert"]))
def test_gradients_told_apart_by_rows_are_those_of_every_loss_by_itself(family, build, monkeypatch):
    told, tells_apart = [], MatrixGradients._tells_apart

    def run(apart):
        monkeypatch.setattr(MatrixGradients, "_tells_apart", apart)
        trainer = build(family=family, balancing="gradnorm", balancing_kwargs={"lr": 0.1}, max_steps=3)
        trainer.train()
        return weights_of(trainer), trainer.engine.weights.state_dict()["balancing"]["state"]

    ours, state = run(lambda *given: told.append(tells_apart(*given)) or told[-1])
    theirs, other = run(lambda *_: False)
    assert any(told) == (family != "albert"), "a layer that runs twice is not told apart"
    assert relative_difference(ours, theirs) < 1e-9
    assert state["weights_K"] == pytest.approx(other["weights_K"], rel=1e-9) and len(set(state["weights_K"])) == 2


@pytest.mark.slow
def test_balancers_train_in_bfloat16_with_tasks_that_stop_and_a_frozen_head(build):
    for name in ("gradnorm", "famo", "uncertainty"):
        trainer = build(
            dtype=torch.float32,
            bf16=True,
            freeze=["sentiment"],
            task_early_stopping_patience={"ner": 1},
            max_steps=8,
            learning_rate=1e-7,  # so that no evaluation is better than the first
            **{**balancing(name, {}), **EVALUATES},
        )
        trainer.train()
        assert "ner" in trainer.progress.finished
        last = logs_of(trainer)[-1]
        assert "ner_weight" not in last and last["sentiment_weight"] > 0 and math.isfinite(last["loss"])


def test_what_a_run_does_not_give_is_named(build):
    with pytest.raises(ValueError, match=r"CoBa weighs tasks by their evaluations. Set eval_strategy"):
        build(balancing="coba")
    with pytest.raises(
        ValueError, match=r"reads gradients of the backbone's top layer, which is frozen. Let it train."
    ):
        build(balancing="gradnorm", freeze=["backbone"])
    with pytest.raises(ValueError, match=r"Did you mean 'dwa'\?"):
        build(balancing="dva")
    with pytest.raises(ValueError, match=r"`balancing_kwargs` should be a mapping"):
        build(balancing="dwa", balancing_kwargs="2")
    with pytest.raises(ValueError, match=r"names 'nre', which is not a task. Did you mean 'ner'\?"):
        build(balancing="fixed", balancing_kwargs={"weights": {"nre": 2}})
    with pytest.raises(TypeError, match=r"`balancer` should be a Balancer. Found str."):
        build(balancer="dwa")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda losses_K: losses_K * math.nan, r"Odd returns weights that are NaN or infinite: \[nan, nan\]"),
        (lambda losses_K: losses_K * 1e39, r"Odd returns weights that are NaN or infinite: .*, for the losses \["),
        (lambda losses_K: losses_K[:1], r"Odd.weights should return a tensor of 2 weights, one for each task. Found"),
        (lambda losses_K: losses_K.tolist(), r"Odd.weights should return a tensor of 2 weights"),
    ],
)
def test_weights_that_are_none_are_named_before_they_reach_the_model(given, message, build):
    class Odd(Balancer):
        def weights(self, losses_K, present_K):
            return given(losses_K)

    trainer = build(balancer=Odd())
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert all(value.isfinite().all() for value in weights_of(trainer).values())


def test_gradnorm_names_the_checkpointing_that_hides_its_gradients(build):
    (name,) = CHECKPOINTING
    hidden = build(balancing="gradnorm", **CHECKPOINTING, **{f"{name}_kwargs": {"use_reentrant": True}})
    with pytest.raises(ValueError, match=r"reentrant activation checkpointing hides. Set use_reentrant to false"):
        hidden.train()


def test_scale_asks_nothing_of_a_frozen_task_without_rows(build_model, data, arguments, tokenizer):
    trainer = MultiTaskTrainer(
        build_model(),
        arguments(balancing="scale", freeze=["ner"]),
        train_dataset={"sentiment": data()["sentiment"]},
        processing_class=tokenizer,
    )
    trainer.train()
    assert logs_of(trainer)[-1]["sentiment_weight"] > 1


def test_an_object_takes_the_place_of_the_argument_and_begins_anew_with_every_training(build):
    trainer = build(balancer=GeometricMean(exact=True), balancing="famo")
    trainer.train()
    first = weights_of(trainer)
    assert {type(trainer.engine.weights.balancer)} == {GeometricMean}
    famo = FAMO()
    famo.begin(["x"])
    trainer = build(balancer=famo)
    trainer.train()
    assert trainer.engine.weights.tasks == famo.tasks == ["sentiment", "ner"]
    assert any(not torch.equal(value, first[name]) for name, value in weights_of(trainer).items())


def test_scale_measures_constant_answers_and_streams_want_theirs_named(build, backbone_path, arguments):
    trainer = build(balancing="scale")
    trainer.train()
    labels = trainer.train_dataset.datasets[0].rows["labels:sentiment"]
    share = sum(labels) / len(labels)
    expected = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert 1 / logs_of(trainer)[0]["sentiment_weight"] == pytest.approx(expected, rel=1e-9)
    with pytest.raises(
        ValueError, match=r"Task 'a': balancing 'scale' needs .* Found 0.0. Set it with balancing_kwargs="
    ):
        MultiTaskTrainer(
            MultiTaskModel.from_backbone(backbone_path(), tasks={"a": SequenceClassification(label_names=["x", "y"])}),
            arguments(balancing="scale"),
            train_dataset={"a": Dataset.from_dict({"text": ["one"] * 4, "label": ["x"] * 4})},
            processing_class=AutoTokenizer.from_pretrained(backbone_path()),
        )


def test_the_balancer_of_the_docs_trains_and_resumes(inverse, build, tmp_path):
    args = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    alone = build(balancer=inverse(), output_dir=str(tmp_path / "alone"), **args)
    alone.train()
    assert logs_of(alone)[-1]["sentiment_weight"] > logs_of(alone)[0]["sentiment_weight"] == 1  # losses are below 1
    build(balancer=inverse(), callbacks=[StopAt(3)], **args).train()
    resumed = build(balancer=inverse(), **args)
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, weights_of(resumed)[name]) for name, value in weights_of(alone).items())


def test_every_balancer_has_a_row_in_the_docs():
    text = (DOCS / "balancing.md").read_text(encoding="utf-8")
    for name, kind in BALANCING.items():
        (row,) = [line for line in text.splitlines() if line.startswith("| `") and f"`{name}`" in line.split("|")[1]]
        link = re.search(r"https://[^ ),]+\w", kind.__doc__)
        assert link is None or f"({link[0]})" in row, name
