"""Several evaluation sets of a dataset: the first one counts, and the others have metrics of their own."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from tiny import read_rows

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification
from hf_multitask.hub.history import results

TASK = SequenceClassification(label_names=["negative", "positive"])
ROWS = read_rows("sentiment", "validation", 24)
HOME, SHIFTED = Dataset.from_list(ROWS[:10]), Dataset.from_list(ROWS[10:])


@pytest.fixture
def build(backbone_path, arguments, tokenizer):
    def make(evaluation, task=TASK, **kwargs):
        model = MultiTaskModel.from_backbone(backbone_path(), tasks={"mood": task, "other": TASK})
        data = {"mood": HOME, "other": HOME}
        return MultiTaskTrainer(
            model, arguments(**kwargs), train_dataset=data, eval_dataset=evaluation, processing_class=tokenizer
        )

    return make


def test_the_first_set_counts_and_the_others_are_measured_alike(build):
    trainer = build({"mood": {"home": HOME, "shifted": SHIFTED}, "other": HOME})
    found = trainer.evaluate()
    plain = trainer.evaluate({"mood": HOME, "other": HOME})
    shifted = trainer.evaluate({"mood": SHIFTED}, metric_key_prefix="eval_shifted")
    for key, value in {**plain, **shifted}.items():
        if not any(word in key for word in ("runtime", "per_second")):
            assert found[key] == value, key
    assert "eval_home_mood_accuracy" not in found and "eval_shifted_other_accuracy" not in found
    trainer.evaluate()
    assert trainer.evaluator.primary["mood"] == ("accuracy", plain["eval_mood_accuracy"])
    trainer.save_metrics("eval", found)
    report = json.loads((Path(trainer.args.output_dir) / "eval_report.json").read_text(encoding="utf-8"))
    assert {split: list(own) for split, own in report.items()} == {"validation": ["mood", "other"], "shifted": ["mood"]}
    own = results(trainer.state.log_history, trainer.tasks, trainer.progress.metrics)
    values = {(one.split, one.task, one.metric): one.value for one in own}
    assert values["shifted", "mood", "accuracy"] == shifted["eval_shifted_mood_accuracy"]
    assert values["validation", "mood", "accuracy"] == plain["eval_mood_accuracy"]


def test_training_keeps_the_best_model_of_the_first_set(build):
    watched = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = build(
        {"mood": {"home": HOME, "shifted": SHIFTED}, "other": HOME}, load_best_model_at_end=True, max_steps=2, **watched
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "eval_average" in entry]
    assert trainer.state.best_metric == max(entry["eval_average"] for entry in logs)
    assert sum("eval_shifted_average" in entry for entry in trainer.state.log_history) == len(logs) == 2


def test_thresholds_are_fitted_to_the_first_set_only(build):
    task = SequenceClassification(label_names=["negative", "positive"], threshold="tune")
    trainer = build({"mood": {"home": HOME, "shifted": SHIFTED}, "other": HOME}, task)
    trainer.evaluate()
    fitted = trainer.model.config.task("mood")["fitted"]
    trainer.evaluate({"mood": HOME})
    assert trainer.model.config.task("mood")["fitted"] == fitted


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({}, "has an empty dict of evaluation sets"),
        ({"home": HOME, "test": HOME}, "the evaluation set 'test'. Its name .* not be one of train"),
        ({"home": HOME, "a b": HOME}, "the evaluation set 'a b'"),
        ({"home": HOME, "other": HOME}, "the evaluation set 'other', whose metrics would look like those of task"),
        ({"home": HOME, "mood_x": HOME}, "whose metrics would look like those of task 'mood'. Rename it"),
        ({"home": HOME, "more": HOME.remove_columns("text")}, "the evaluation \\(more\\) data has no column 'text'"),
        ({"home": HOME, "more": [1]}, "Dataset 'mood' of the evaluation \\(more\\) data should be a datasets.Dataset"),
    ],
)
def test_sets_that_cannot_be_measured(build, sets, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build({"mood": sets, "other": HOME})
