"""Thresholds and temperatures of a run: fitted to validation rows only, kept with their weights, served as measured."""

import json
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification, TokenClassification

LABELS = ["joy", "fear", "calm"]


def rows_of(count, seed):
    draw = np.random.default_rng(seed)
    words = {"joy": "happy", "fear": "afraid", "calm": "quiet"}
    rows = []
    for _ in range(count):
        own = [label for label in LABELS if draw.random() < 0.35]
        text = " ".join([*(words[label] for label in own if draw.random() < 0.8), "the", "day", str(draw.integers(9))])
        rows.append({"text": text, "emotions": own, "mood": "good" if "joy" in own else "bad"})
    return Dataset.from_list(rows)


TRAIN, VALIDATION, TEST = rows_of(48, 0), rows_of(40, 1), rows_of(30, 2)


def tasks():
    common = {"dataset": "rows", "calibration": "temperature", "threshold": "tune"}
    return {
        "emotions": SequenceClassification(label_column="emotions", label_names=LABELS, **common),
        "mood": SequenceClassification(label_column="mood", label_names=["bad", "good"], **common),
    }


@pytest.fixture
def build(backbone_path, arguments):
    def make(**kwargs):
        torch.manual_seed(3)
        path = backbone_path("bert")
        model = MultiTaskModel.from_backbone(path, tasks=kwargs.pop("tasks", None) or tasks())
        data = {"train_dataset": {"rows": TRAIN}, "eval_dataset": {"rows": VALIDATION}, **kwargs.pop("data", {})}
        values = {"max_steps": 4, "learning_rate": 3e-3, "eval_strategy": "steps", "eval_steps": 2, **kwargs}
        tokenizer = AutoTokenizer.from_pretrained(path)
        return MultiTaskTrainer(model, arguments(**values), **data, processing_class=tokenizer)

    return make


def fitted(model):
    return {task["name"]: task["fitted"] for task in model.config.tasks}


def saved(folder):
    tasks = json.loads((folder / "config.json").read_text())["tasks"]
    return {task["name"]: task["fitted"] for task in tasks}


def test_metrics_with_fitted_values_are_those_of_the_answers(build, tmp_path):
    trainer = build(save_strategy="steps", save_steps=2, save_best_by_task=True)
    trainer.train()
    found, values = trainer.evaluate(), fitted(trainer.model)
    assert set(values["emotions"]["threshold"]) == set(LABELS) and set(values["mood"]["threshold"]) == {"good"}
    assert {"eval_emotions_ece", "eval_emotions_ece_uncalibrated", "eval_mood_ece"} <= found.keys()
    measured = trainer.evaluate({"rows": TEST}, metric_key_prefix="test")
    same = trainer.evaluate({"rows": TEST})  # under the names of validation
    assert fitted(trainer.model) == values  # rows of another split fit nothing
    assert same["eval_emotions_micro_f1"] == measured["test_emotions_micro_f1"]
    assert trainer.predict({"rows": TEST})["mood"].metrics["test_mood_f1"] == measured["test_mood_f1"]
    trainer.save_model(str(tmp_path / "model"))
    assert saved(tmp_path / "model") == values
    for rows, metrics in ((VALIDATION, found), (TEST, measured)):
        prefix = "eval" if rows is VALIDATION else "test"
        answers = pipeline("multitask", model=str(tmp_path / "model"))(rows["text"])
        told = [{one["label"] for one in answer["emotions"]} for answer in answers]
        hot = [[[label in own for label in LABELS] for own in side] for side in (rows["emotions"], told)]
        assert metrics[f"{prefix}_emotions_micro_f1"] == pytest.approx(f1_score(*hot, average="micro"))
        moods = [answer["mood"]["label"] for answer in answers]
        assert metrics[f"{prefix}_mood_f1"] == pytest.approx(f1_score(rows["mood"], moods, pos_label="good"))
        assert all(
            one["score"] >= values["emotions"]["threshold"][one["label"]] for a in answers for one in a["emotions"]
        )
    best = json.loads((tmp_path / "out" / "best_checkpoints.json").read_text())["emotions"]
    assert set(saved(tmp_path / "out" / best["checkpoint"])["emotions"]["threshold"]) == set(LABELS)


def test_fitted_values_do_not_depend_on_batches(build):
    one, other = build(per_device_eval_batch_size=40), build(per_device_eval_batch_size=3)
    for trainer in (one, other):  # in float32, logits that are nearly equal leave the temperature few digits
        trainer.model.double()
    other.model.load_state_dict(one.model.state_dict())
    assert one.evaluate()["eval_emotions_micro_f1"] == other.evaluate()["eval_emotions_micro_f1"]
    for task, values in fitted(one.model).items():
        assert values["threshold"] == pytest.approx(fitted(other.model)[task]["threshold"], abs=1e-5)
        assert values["temperature"] == pytest.approx(fitted(other.model)[task]["temperature"], rel=1e-6)


def test_the_best_weights_have_the_values_that_were_fitted_with_them(build, tmp_path):
    trainer = build(
        save_strategy="steps", save_steps=2, load_best_model_at_end=True, metric_for_best_model="mood_loss", max_steps=6
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert fitted(trainer.model) == saved(tmp_path / "out" / best.rpartition("/")[2])
    kept = fitted(trainer.model)
    trainer.evaluate()  # of the best weights, on the same rows
    for task, values in fitted(trainer.model).items():
        assert values["threshold"] == pytest.approx(kept[task]["threshold"], abs=1e-5)


def test_a_resumed_run_has_the_values_of_its_checkpoint(build, tmp_path):
    build(save_strategy="steps", save_steps=2, max_steps=2).train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    again = build(max_steps=2)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert fitted(again.model) == saved(checkpoint) and saved(checkpoint)["mood"]["threshold"]


def test_an_export_says_how_to_answer_and_merges_with_its_values(build, tmp_path):
    trainer = build()
    trainer.train()
    model, tokenizer = trainer.model.eval(), trainer.processing_class
    values, texts = fitted(model), TEST["text"]
    multitask = pipeline("multitask", model=model, tokenizer=tokenizer)
    for name in ("emotions", "mood"):
        model.export_task(name, tmp_path / name, tokenizer)
        stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        tokens = tokenizer(texts[:4], return_tensors="pt", padding=True)
        with torch.no_grad():
            assert torch.equal(stock(**tokens).logits, model(**tokens, tasks=[name]).logits[name])
        card = (tmp_path / name / "README.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        for text in texts[:6]:
            told, place = [], code.replace(f'model="{name}"', f'model="{tmp_path / name}"')
            example = re.search(r"answer\(\[(.*?)\]\)", place)[1]
            exec(place.replace(example, json.dumps(text)), {"print": told.append})
            answer = multitask(text, tasks=[name])[name]
            want = sorted(one["label"] for one in answer) if name == "emotions" else answer["label"]
            assert (sorted(told[0]) if name == "emotions" else told[0]) == want
    folders = {name: tmp_path / name for name in ("emotions", "mood")}
    merged = MultiTaskModel.from_task_models(folders, backbone="emotions")
    assert fitted(merged) == values and merged.config.task("mood")["threshold"] == "tune"
    assert not hasattr(merged.config.backbone_config, "decisions")
    model.rename_task("mood", "feeling")
    assert fitted(model)["feeling"] == values["mood"]


def test_what_is_fitted_needs_validation_rows(build, caplog):
    with pytest.raises(ValueError, match=r"Task 'emotions': `calibration` is fitted to validation rows.*eval_dataset"):
        build(data={"eval_dataset": None}, eval_strategy="no")
    trainer = build(eval_strategy="no", max_steps=1)
    trainer.train()
    assert (
        "Task 'mood': `calibration` is fitted in an evaluation of the validation data, and none has run" in caplog.text
    )
    trainer.evaluate()
    assert fitted(trainer.model)["mood"]["threshold"]
    with pytest.raises(ValueError, match=r"`calibration` is fitted to logits.*Remove one of them"):
        MultiTaskTrainer(
            trainer.model,
            trainer.args,
            processing_class=trainer.processing_class,
            compute_metrics={"mood": lambda found: {"x": 0.0}},
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        )


def test_without_fitting_answers_are_as_before(build):
    plain = {name: SequenceClassification(label_column=name, dataset="rows") for name in ("emotions", "mood")}
    trainer = build(tasks=plain, max_steps=1)
    trainer.train()
    answer = pipeline("multitask", model=trainer.model, tokenizer=trainer.processing_class)("happy day")
    assert {one["label"] for one in answer["emotions"]} == set(LABELS)
    assert trainer.model.config.task("mood")["fitted"] is None


def tagged(seed, count):
    """Words with their first letter as a tag, or their length, some of it noise."""
    draw, rows = np.random.default_rng(seed), []
    for row in rows_of(count, seed):
        words = row["text"].split()
        kinds = [word[0].upper() if draw.random() < 0.7 else "D" for word in words]
        names = [f"B-{kind}" if kind in "HAQ" else "O" for kind in kinds]
        rows.append({"tokens": words, "kinds": kinds, "names": names})
    return Dataset.from_list(rows)


@pytest.mark.parametrize("decoding", ["argmax", "constrained"])
def test_tags_are_calibrated_as_they_are_served(decoding, build, tmp_path):
    common = {"dataset": "rows", "calibration": "temperature"}
    names = ["O", *(f"{mark}-{kind}" for kind in "HAQ" for mark in "BI")]
    both = {
        "kinds": TokenClassification(tags_column="kinds", **common),
        "names": TokenClassification(tags_column="names", label_names=names, decoding=decoding, **common),
    }
    held = tagged(5, 30)
    data = {"train_dataset": {"rows": tagged(4, 40)}, "eval_dataset": {"rows": held}}
    trainer = build(tasks=both, data=data, max_steps=6)
    trainer.train()
    found, values = trainer.evaluate(), fitted(trainer.model)
    assert found["eval_kinds_ece"] < found["eval_kinds_ece_uncalibrated"]
    assert found["eval_names_ece_uncalibrated"] > 0 and values["names"]["temperature"] != 1
    trainer.save_model(str(tmp_path / "model"))
    served = pipeline("multitask", model=str(tmp_path / "model"))
    scores, right = [], []
    for row, answer in zip(held, served([{"tokens": words} for words in held["tokens"]]), strict=True):
        scores += [word["score"] for word in answer["kinds"]]
        right += [word["entity"] == kind for word, kind in zip(answer["kinds"], row["kinds"], strict=True)]
    places, gaps = np.ceil(np.array(scores) * 15), np.array(scores) - np.array(right)
    apart = sum(abs(gaps[places == place].sum()) for place in np.unique(places)) / len(scores)
    assert apart == pytest.approx(found["eval_kinds_ece"], abs=1e-4)
    assert np.mean(right) == pytest.approx(found["eval_kinds_accuracy"])


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("mood", {"threshold": 70}, r"`threshold` should be a probability.* Found `threshold = 70`"),
        ("mood", {"threshold": "0.7"}, r"`threshold` should be a probability.* Found `threshold = '0\.7'`"),
        ("mood", {"calibration": True}, r"`calibration` should be 'temperature'\. Found `calibration = True`"),
        ("mood", {"fitted": {"threshold": {"great": 0.7}}}, r".*the threshold of labels of the task.*'great': 0\.7"),
        ("mood", {"fitted": {"threshold": {"good": 7}}}, r"`fitted` should have .*'good': 7"),
        ("mood", {"fitted": {"threshold": 0.7}}, r"`fitted` should have .*'threshold': 0\.7"),
        ("mood", {"fitted": 0.7}, r"`fitted` should have .* Found `fitted = 0\.7`"),
        ("moods", {"threshold": 0.3}, r"`threshold` is for two classes or label sets, and there are 3 classes"),
        ("mood", {"problem_type": "regression"}, r"`threshold` is for classes, and problem_type is regression"),
        ("tags", {"fitted": {"temperature": -1}}, r"`fitted` should have a temperature above 0"),
        ("tags", {"fitted": {"temperature": "1"}}, r"`fitted` should have a temperature above 0"),
    ],
)
def test_a_configuration_edited_by_hand_loads_only_if_answers_can_be_made_with_it(
    build_model, tmp_path, name, values, message
):
    tags = TokenClassification(label_names=["O", "B-X"], calibration="temperature", fitted={"temperature": 2.0})
    known = {"mood": tasks()["mood"], "moods": SequenceClassification(label_names=LABELS), "tags": tags}
    known["moods"].problem_type = "single_label_classification"
    build_model(tasks=known).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert MultiTaskModel.from_pretrained(tmp_path).config.task("tags")["fitted"] == {"temperature": 2.0}
    next(task for task in config["tasks"] if task["name"] == name).update(values)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"^Task '{name}': {message}"):
        MultiTaskModel.from_pretrained(tmp_path)
    model = build_model(tasks=known)
    with pytest.raises(ValueError, match=f"^Task '{name}': {message}"):
        model.set_task(name, model.config.task(name) | values)
