"""Rows that are capped and counted, tasks that stop, models that were best, and that all of it survives a checkpoint."""

import json
import re
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from parameters import few
from safetensors.torch import load_file
from stopping import StopAt
from transformers import AutoModel, TrainerCallback

from hf_multitask import MultiTaskTrainer, SamplingRates


class Metrics:
    """Metrics that follow a script, so that a test knows which evaluation is the best."""

    def __init__(self, *values):
        self.values = values
        self.calls = 0

    def __call__(self, prediction):
        self.calls += 1
        return {"score": self.values[min(self.calls, len(self.values)) - 1]}


@pytest.fixture
def build(build_model, data, arguments, tokenizer):
    def make(*, metrics=None, callbacks=None, sampler=None, train=None, **kwargs):
        kwargs = {"max_steps": -1, "num_train_epochs": 4, "eval_strategy": "epoch", **kwargs}
        return MultiTaskTrainer(
            build_model(),
            arguments(**kwargs),
            train_dataset=train or data(40, 24),
            eval_dataset=data(9, 7, "validation"),
            processing_class=tokenizer,
            compute_metrics=metrics,
            callbacks=callbacks,
            sampler=sampler,
        )

    return make


def test_caps_draw_rows_by_seed(build, data):
    trainer = build(max_train_samples={"sentiment": 10}, max_eval_samples=5, seed=3)
    assert trainer.train_dataset.sizes == {"sentiment": 10, "ner": 24}
    assert trainer.eval_dataset.sizes == {"sentiment": 5, "ner": 5}
    same, other = (build(max_train_samples={"sentiment": 10}, seed=seed).train_dataset.digests for seed in (3, 4))
    assert same == trainer.train_dataset.digests
    assert same["sentiment"] != other["sentiment"] and same["ner"] == other["ner"]
    assert build(max_train_samples="30").train_dataset.sizes == {"sentiment": 30, "ner": 24}
    assert "Plan: 20 steps of 8 rows" in build(max_train_samples=20).plan.describe(20)


@pytest.mark.parametrize("value", [0, {"ner": 0}, "many", {"ner": "2"}, -3, True])
def test_unusable_caps_fail_when_built(build, value):
    with pytest.raises(ValueError, match=r"`max_train_samples` should be a whole number of 1 or more"):
        build(max_train_samples=value)


def test_caps_name_datasets(build):
    with pytest.raises(ValueError, match=r"`max_train_samples` names the dataset 'nre'.* Did you mean 'ner'?"):
        build(max_train_samples={"nre": 3})


@pytest.mark.parametrize("sampling", ["proportional", "uniform", "temperature", "annealed"])
def test_what_was_seen_is_what_was_planned(build, sampling, capsys):
    trainer = build(sampling=sampling, num_train_epochs=2.4, gradient_accumulation_steps=2)
    trainer.train()
    out = capsys.readouterr().out
    plan, seen = re.search(r"Plan: .*\n((?:.*\n){3})", out)[1], re.search(r"Seen: .*\n((?:.*\n){3})", out)[1]
    assert plan == seen and "ner" in plan
    assert sum(trainer.progress.seen.values()) == 64 + 64 + 32  # the last step of a whole epoch has what is left


class Halves(SamplingRates):
    def rates(self, sizes):
        return {"sentiment": 1.0, "ner": 1.0}

    def rates_at(self, sizes, progress):
        return {"sentiment": 1.0, "ner": 0.0} if progress < 0.5 else {"sentiment": 0.0, "ner": 1.0}


def test_own_sampler_may_change_on_the_way(build):
    trainer = build(sampler=Halves())
    trainer.train()
    shares = [entry["ner_share"] for entry in trainer.state.log_history if "loss" in entry]
    assert shares == [0.0] * 16 + [1.0] * 16


class Watch(TrainerCallback):
    """The weights of the NER head after every step."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(model.heads["ner"].native.classifier.weight.clone())


def test_task_that_gets_no_better_stops_and_leaves_the_mixture(build, caplog):
    watch = Watch()
    trainer = build(
        metrics={"ner": Metrics(0.5, 0.4, 0.4, 0.4), "sentiment": Metrics(0.1, 0.2, 0.3, 0.4)},
        callbacks=[watch],
        task_early_stopping_patience=1,
        weight_decay=0.1,
    )
    trainer.train()
    assert trainer.progress.finished == {"ner": 16}  # after the second of four epochs of 8 steps
    assert "Task 'ner' stops at step 16: no better score than 0.5000 of step 8 in 1 evaluations." in caplog.text
    assert not torch.equal(watch.weights[14], watch.weights[15])
    assert all(torch.equal(weight, watch.weights[15]) for weight in watch.weights[16:])
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [("ner_loss" in entry) for entry in logs[16:]] == [False] * 16
    assert [entry["sentiment_share"] for entry in logs[16:]] == [1.0] * 16
    assert trainer.progress.seen == {"sentiment": 80 + 128, "ner": 48}


def test_task_that_stops_in_an_epoch_has_its_rows_until_the_next(build):
    trainer = build(
        metrics={"ner": Metrics(0.5), "sentiment": Metrics(*(step / 40 for step in range(40)))},
        task_early_stopping_patience={"ner": 1},
        eval_strategy="steps",
        eval_steps=5,
        num_train_epochs=2,
    )
    trainer.train()
    assert trainer.progress.finished == {"ner": 10} and trainer.progress.left == {"ner": 2}
    trainer = build(
        metrics={"ner": Metrics(0.5), "sentiment": Metrics(*(step / 40 for step in range(40)))},
        task_early_stopping_patience={"ner": 1},
        eval_strategy="steps",
        eval_steps=3,
        num_train_epochs=2,
    )
    trainer.train()
    assert trainer.progress.finished == {"ner": 6} and trainer.progress.left == {"ner": 1}
    assert trainer.progress.seen == {"sentiment": 40 + 64, "ner": 24}


def test_training_ends_with_its_last_task(build):
    trainer = build(metrics={"ner": Metrics(0.5), "sentiment": Metrics(0.5)}, task_early_stopping_patience=2)
    trainer.train()
    assert trainer.state.global_step == 24 and trainer.progress.finished == {"sentiment": 24, "ner": 24}


def test_best_model_of_every_task_is_kept_beside_the_best_on_average(build, tmp_path):
    trainer = build(
        metrics={"ner": Metrics(0.1, 0.9, 0.2, 0.3), "sentiment": Metrics(0.8, 0.2, 0.7, 0.95)},
        save_best_by_task=True,
        save_strategy="no",
    )
    kept = {}

    class Keep(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, **kwargs):
            kept[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}

    trainer.add_callback(Keep())
    trainer.train()
    best = json.loads((tmp_path / "out" / "best_checkpoints.json").read_text())
    assert {name: (entry["step"], entry["value"]) for name, entry in best.items()} == {
        "sentiment": (32, 0.95),
        "ner": (16, 0.9),
        "average": (32, pytest.approx(0.625)),
    }
    assert {path.name for path in (tmp_path / "out" / "best").iterdir()} == {"step-16", "step-32"}
    for entry in best.values():
        loaded = AutoModel.from_pretrained(tmp_path / "out" / entry["checkpoint"])
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, kept[entry["step"]][name]), name


@pytest.mark.parametrize(
    ("sampling", "stop", "calls"),
    few(
        [(sampling, *stop) for sampling in ("annealed", "uniform") for stop in ((7, 1), (13, 2), (21, 4))],
        [("annealed", 13, 2)],
    ),
)
def test_resume_restores_stopped_tasks_best_models_and_counts(build, sampling, stop, calls, tmp_path):
    def run(name, *, calls=0, **kwargs):
        metrics = {"ner": Metrics(0.5, 0.4, 0.6, 0.4), "sentiment": Metrics(*(step / 40 for step in range(40)))}
        for metric in metrics.values():
            metric.calls = calls
        return build(
            metrics=metrics,
            output_dir=str(tmp_path / name),
            sampling=sampling,
            task_early_stopping_patience={"ner": 1},
            save_best_by_task=True,
            eval_strategy="steps",
            eval_steps=5,
            save_strategy="steps",
            save_steps=stop,
            weight_decay=0.1,
            layerwise_lr_decay=0.9,
            **kwargs,
        )

    alone = run("left-alone")
    alone.train()
    assert alone.progress.finished == {"ner": 10} and alone.progress.left == {"ner": 2}
    run("has-stopped", callbacks=[StopAt(stop)]).train()
    resumed = run("has-stopped", calls=calls)
    resumed.train(resume_from_checkpoint=True)
    ours, theirs = (replace(one.progress, files={}) for one in (resumed, alone))  # arguments name their folder
    assert ours == theirs and resumed.progress.files.keys() == alone.progress.files.keys()
    names = ("has-stopped", "left-alone")
    ours, theirs = (load_file(tmp_path / name / "checkpoint-32" / "model.safetensors") for name in names)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    best = [(tmp_path / name / "best_checkpoints.json").read_text() for name in names]
    assert best[0] == best[1]


def test_resume_on_other_rows_is_refused_by_name(build, data):
    kwargs = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4, "eval_strategy": "no"}
    build(**kwargs).train()
    rows = data(40, 24)
    changed = {**rows, "ner": Dataset.from_list([*rows["ner"].to_list()[:-1], rows["ner"][0]])}
    more = {**kwargs, "max_steps": 6, "save_strategy": "no"}
    for message, wrong in [
        (r"The contents of the datasets of this run and of checkpoint '.*checkpoint-4' differ", {"train": changed}),
        (r"The rows of the datasets .* differ: .*'ner': 23", {"max_train_samples": {"ner": 23}}),
        (r"The rows of a step .* differ: 16 now, 8 then", {"per_device_train_batch_size": 16}),
        (r"The sampling .* differ: \['Uniform', None\] now, \['Proportional', None\] then", {"sampling": "uniform"}),
        (r"The seed of the data .* differ: 7 now, 42 then.*ignore_data_skip=True", {"seed": 7}),
    ]:
        with pytest.raises(ValueError, match=message):
            build(**{**more, **wrong}).train(resume_from_checkpoint=True)
    build(**more, sampling="uniform", ignore_data_skip=True).train(resume_from_checkpoint=True)
    trainer = build(**more)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6


def test_resume_needs_a_checkpoint_of_this_trainer(build, tmp_path):
    build(save_strategy="steps", save_steps=4, max_steps=4, eval_strategy="no").train()
    state = tmp_path / "out" / "checkpoint-4" / "multitask_state.json"
    content = json.loads(state.read_text())
    state.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(ValueError, match=r"checkpoint-4' comes from a newer hf_multitask"):
        build(max_steps=6, eval_strategy="no").train(resume_from_checkpoint=True)
    state.unlink()
    with pytest.raises(ValueError, match=r"checkpoint-4' has no multitask_state.json, so no MultiTaskTrainer wrote it"):
        build(max_steps=6, eval_strategy="no").train(resume_from_checkpoint=True)
