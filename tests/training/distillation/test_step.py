"""The loss of tasks with teachers, step by step."""

import copy
import math

import layouts
import pytest
import torch
import torch.nn.functional as F
from layouts import describe, relative_difference
from mixtures import KINDS
from parameters import few
from safetensors.torch import load_file
from stopping import StopAt
from tiny import NER_LABELS

pytestmark = pytest.mark.trainer


def losses_by_hand(trainer, batch, gold, temperature):
    """By task, the mixed loss of a batch of whole steps, item by item."""
    model, found = trainer.model.train(), {}
    for forward in batch["forwards"]:
        inputs = {key: value for key, value in forward.items() if isinstance(value, torch.Tensor)}
        logits = model(**inputs, task_rows=forward["task_rows"]).logits
        for name, labels in forward["labels"].items():
            soft = forward["soft_labels"].get(name)
            scores_of = logits[name]
            if name == "ner":  # tokens of texts, or of the windows of texts
                known = labels != -100
                scores_of, labels, soft = scores_of[known], labels[known], None if soft is None else soft[known]
            for item, wanted in enumerate(labels):
                scores, told = scores_of[item], None if soft is None else soft[item]
                loss = -scores.log_softmax(0)[wanted]
                if told is not None:
                    probabilities = (told.double() / temperature).softmax(0)
                    taught = -(probabilities * (scores / temperature).log_softmax(0)).sum() * temperature**2
                    loss = gold * loss + (1 - gold) * taught
                found.setdefault(name, []).append(loss)
    return {name: float(torch.stack(own).mean().detach()) for name, own in found.items()}


@pytest.mark.parametrize(
    ("schedule", "temperature", "golds"),
    [({}, 1.0, [0.0, 0.25, 0.5, 0.75]), ({"distillation": "fixed", "weight": 0.3}, 2.0, [0.3] * 4)],
)
def test_loss_is_that_of_the_formula(schedule, temperature, golds, build, teachers):
    kwargs = {"temperature": temperature} | ({"weight": schedule["weight"]} if "weight" in schedule else {})
    schedule = {key: value for key, value in schedule.items() if key == "distillation"}
    args = {"distillation_kwargs": kwargs, **schedule, "max_steps": 4, "learning_rate": 0.0}
    trainer = build(teachers, per_device_train_batch_size=8, **args)
    batches = list(trainer.plan.loader(trainer.data_collator))
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry, batch, gold in zip(logs, batches, golds, strict=True):
        wanted = losses_by_hand(trainer, batch, gold, temperature)
        assert wanted.keys() == {"sentiment", "ner"}
        for name, value in wanted.items():
            assert entry[f"{name}_loss"] == pytest.approx(value, rel=1e-9)
    assert trainer.engine.distillation.gold == golds[3]


def test_only_taught_tasks_have_another_loss(build, teachers):
    alone = build(max_steps=1, learning_rate=0.0)
    taught = build({"ner": teachers["ner"]}, max_steps=1, learning_rate=0.0)
    for trainer in (alone, taught):
        trainer.train()
    (one, *_), (other, *_) = (trainer.state.log_history for trainer in (alone, taught))
    assert one["sentiment_loss"] == other["sentiment_loss"]
    assert abs(one["ner_loss"] - other["ner_loss"]) > 1e-3


def test_a_word_without_an_answer_has_its_label(build, teachers):
    trainer = build(teachers, per_device_train_batch_size=24, max_steps=1, distillation_kwargs={"temperature": 2})
    (batch, *_) = list(trainer.plan.loader(trainer.data_collator))
    forward = next(one for one in batch["forwards"] if "ner" in one["labels"])
    forward["soft_labels"]["ner"][:] = math.nan
    inputs = {key: value for key, value in forward.items() if isinstance(value, torch.Tensor)}
    logits = trainer.model.train()(**inputs, task_rows=forward["task_rows"]).logits["ner"]
    labels = forward["labels"]["ner"]
    known = labels != -100
    wanted = F.cross_entropy(logits[known] / 2, labels[known]) * 4
    _, outputs = trainer.engine.loss(trainer.model, copy.copy(forward), None)
    assert float(outputs.losses["ner"].detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)


ALL_ROWS = {"distillation_kwargs": {"rows": "all", "temperature": 2}}
EVERY = ["sentiment", "topics", "stars", "pairs", "ner"]
METHODS = {
    "plain": {},
    "famo": {"balancing": "famo", "balancing_kwargs": {"exact": True}, **ALL_ROWS},
    "gradnorm": {"balancing": "gradnorm"},
    "upgrad": {"aggregation": "upgrad", **ALL_ROWS},
}


@pytest.mark.parametrize("method", few(METHODS, ["plain", "upgrad"]))
def test_accumulation_does_not_change_the_update(method, backbone_path, tmp_path, record_property):
    description = {**describe(method, max_steps=3, **METHODS[method]), "taught": EVERY}
    whole, alone = layouts.run(description, backbone_path(), tmp_path, 32, 1)
    parts, record = layouts.run(description, backbone_path(), tmp_path, 8, 4)
    record_property("32x1 against 8x4, relative norm", relative_difference(whole, parts))
    assert relative_difference(whole, parts) < 1e-9
    assert record["denominators"] == alone["denominators"]
    if method == "plain":
        untaught, _ = layouts.run({**description, "taught": []}, backbone_path(), tmp_path, 32, 1)
        assert relative_difference(whole, untaught) > 1e-5


def test_a_task_without_a_label_in_the_step_is_taught_with_all_rows(backbone_path, tmp_path):
    """The rows of 'stars' are few, and its teacher answers those of 'reviews' in every step."""
    sizes = {"reviews": 60, "stars": 1}
    description = describe("rare", tasks=("sentiment", "stars"), sizes=sizes, rows=8, max_steps=4, **ALL_ROWS)
    _, record = layouts.run({**description, "taught": ["stars"]}, backbone_path(), tmp_path, 4, 2)
    assert any("stars" not in items for items in record["denominators"])
    assert all("stars" in trained for trained in record["trained"])
    _, record = layouts.run({**description, "taught": ["sentiment"]}, backbone_path(), tmp_path, 4, 2)
    assert any("stars" not in trained for trained in record["trained"])


def test_resume_is_exact_and_tells_of_another_teacher(build, build_model, teachers, teacher_of, tmp_path, caplog):
    def trainer(name, teachers=teachers, **kwargs):
        return build(
            teachers,
            build_model(),  # with dropout
            output_dir=str(tmp_path / name),
            max_steps=4,
            save_strategy="steps",
            save_steps=2,
            **{"distillation_kwargs": {"temperature": 2}, **kwargs},
        )

    trainer("alone").train()
    trainer("stopped", callbacks=[StopAt((2, 1, 0))]).train()
    resumed = trainer("stopped")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    ours, theirs = (load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in ("stopped", "alone"))
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
    assert "other arguments" not in caplog.text
    other = {**teachers, "ner": teacher_of("token", NER_LABELS)}
    changed = trainer("stopped", other, distillation="fixed", distillation_kwargs={"weight": 0.25})
    changed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-2"))
    assert "distillation fixed (then annealed)" in caplog.text
    assert "teachers {" in caplog.text


def test_a_task_whose_loss_is_nan_is_left_out(backbone_path, tmp_path):
    description = describe("poisoned", tasks=KINDS, dtype="float32", missing=0.0, max_steps=2, non_finite_patience=9)
    description |= {"poisoned": [2, 7], "taught": ["sentiment", "stars", "ner"]}
    _, record = layouts.run(description, backbone_path(), tmp_path, 8, 4)
    assert record["non_finite"]["stars"]["steps"] >= 1
