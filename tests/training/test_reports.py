"""Reports of evaluations: the numbers of scikit-learn and seqeval for the answers of the pipeline, by split and slice."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from seqeval.metrics import classification_report
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from tiny import make_tokenizer, read_rows

from hf_multitask import (
    MultiTaskModel,
    MultiTaskPipeline,
    MultiTaskTrainer,
    SequenceClassification,
    TokenClassification,
)
from hf_multitask.tasks import QuestionAnswering, reports
from hf_multitask.training.report.picture import color

LABELS = ["negative", "positive"]
TAGS = sorted({tag for row in read_rows("ner", "validation") for tag in row["ner_tags"]})


@pytest.fixture
def build(backbone_path, arguments):
    def make(tasks, data, **kwargs):
        model = MultiTaskModel.from_backbone(backbone_path(), tasks=tasks)
        own = {key: kwargs.pop(key) for key in list(kwargs) if key == "compute_metrics"}
        tokenizer = make_tokenizer("bert")
        return MultiTaskTrainer(model, arguments(**kwargs), eval_dataset=data, processing_class=tokenizer, **own)

    return make


def file_of(trainer):
    return Path(trainer.args.output_dir) / "eval_report.json"


def written(trainer):
    return json.loads(file_of(trainer).read_text(encoding="utf-8"))


def test_the_report_counts_the_answers_of_the_pipeline(build):
    rows = [{**row, "kind": place % 2} for place, row in enumerate(read_rows("sentiment", "validation", 20))]
    ner = [row for row in read_rows("ner", "validation", 12) if len(row["tokens"]) < 25]
    tasks = {
        "sentiment": SequenceClassification(label_names=LABELS, slice_columns=["kind"]),
        "ner": TokenClassification(label_names=TAGS, calibration="temperature"),
    }
    trainer = build(tasks, {"sentiment": Dataset.from_list(rows), "ner": Dataset.from_list(ner)})
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    report = written(trainer)["validation"]

    pipeline = MultiTaskPipeline(model=trainer.model.eval(), tokenizer=trainer.processing_class)
    told = [answer["sentiment"]["label"] for answer in pipeline([row["text"] for row in rows])]
    true = [row["label"] for row in rows]
    own = report["sentiment"]
    values = precision_recall_fscore_support(true, told, labels=LABELS, zero_division=0)
    for place, label in enumerate(LABELS):
        assert list(own["classes"][label].values()) == pytest.approx([column[place] for column in values])
    assert own["confusion_matrix"]["rows"] == confusion_matrix(true, told, labels=LABELS).tolist()
    assert own["metrics"]["accuracy"] == metrics["eval_sentiment_accuracy"] and own["rows"] == 20
    assert own["slices"]["kind"]["1"]["metrics"]["accuracy"] == metrics["eval_sentiment_accuracy/kind=1"]
    assert own["slices"]["kind"]["1"]["rows"] == 10
    bins = own["calibration"]["bins"]
    assert sum(one["rows"] for one in bins) == 20
    right = sum(one["rows"] * one["right"] for one in bins)
    assert right == pytest.approx(sum(map(str.__eq__, true, told)))
    assert "worst" not in own

    answers = pipeline([row["tokens"] for row in ner], tasks=["ner"])
    spans = [
        [(one["word_indices"][0], one["word_indices"][-1], one["entity_group"]) for one in a["ner"]] for a in answers
    ]
    tags = []
    for row, found in zip(ner, spans):
        tags.append(["O"] * len(row["tokens"]))
        for start, end, kind in found:
            tags[-1][start : end + 1] = [f"B-{kind}", *[f"I-{kind}"] * (end - start)]
    seqeval = classification_report([row["ner_tags"] for row in ner], tags, output_dict=True, zero_division=0)
    for kind, found in report["ner"]["classes"].items():
        assert found["f1"] == pytest.approx(seqeval[kind]["f1-score"]) and found["support"] == seqeval[kind]["support"]
    matrix = report["ner"]["confusion_matrix"]
    assert report["ner"]["calibration"]["ece"] == metrics["eval_ner_ece"]
    assert sum(one["rows"] for one in report["ner"]["calibration"]["bins"]) == np.sum(matrix["rows"])
    counts = Counter(tag for row in ner for tag in row["ner_tags"])
    assert {tag: sum(row) for tag, row in zip(matrix["labels"], matrix["rows"])} == {
        tag: counts[tag] for tag in matrix["labels"]
    }

    trainer.save_metrics("test", trainer.evaluate({"ner": Dataset.from_list(ner)}, metric_key_prefix="test"))
    assert {split: list(own) for split, own in written(trainer).items()} == {
        "validation": ["sentiment", "ner"],
        "test": ["ner"],
    }


def test_a_missing_metric_is_null_with_its_reason(build):
    rows = [{**row, "label": "positive", "kind": 1} for row in read_rows("sentiment", "validation", 4)]
    rows += [{**row, "label": "negative", "kind": 0} for row in read_rows("sentiment", "validation", 4)]
    task = SequenceClassification(label_names=LABELS, slice_columns=["kind"], metrics=["accuracy", "roc_auc"])
    trainer = build({"sentiment": task}, {"sentiment": Dataset.from_list(rows)})
    trainer.save_metrics("eval", trainer.evaluate())
    own = written(trainer)["validation"]["sentiment"]
    assert own["missing"] == {} and own["metrics"]["roc_auc"] is not None
    for part in own["slices"]["kind"].values():
        assert part["metrics"]["roc_auc"] is None and part["metrics"]["accuracy"] is not None
        assert part["missing"] == {
            "roc_auc": "it needs rows with and rows without a class, and the split has no class with both"
        }


def test_sets_numbers_and_metrics_of_ones_own(build):
    texts = [row["text"] for row in read_rows("sentiment", "validation", 12)]
    rows = [
        {"text": text, "topics": [["a"], ["a", "b"], []][place % 3], "stars": float(place), "label": LABELS[place % 2]}
        for place, text in enumerate(texts)
    ]
    common = {"dataset": "rows"}
    tasks = {
        "topics": SequenceClassification(label_column="topics", label_names=["a", "b"], **common),
        "stars": SequenceClassification(label_column="stars", problem_type="regression", **common),
        "own": SequenceClassification(label_names=LABELS, **common),
    }
    tasks["topics"].problem_type = "multi_label_classification"
    metrics = {"own": lambda _: {"half": 0.5}}
    trainer = build(tasks, {"rows": Dataset.from_list(rows)}, compute_metrics=metrics)
    trainer.save_metrics("eval", trainer.evaluate())
    found = written(trainer)["validation"]
    assert [found["topics"]["classes"][label]["support"] for label in "ab"] == [8, 4]
    assert all(np.sum(matrix) == 12 for matrix in found["topics"]["confusion_matrices"].values())
    predicted = trainer.predict({"rows": Dataset.from_list(rows)})["stars"].predictions[:, 0]
    errors = np.sort(np.abs(predicted - np.arange(12)))
    (output,) = found["stars"]["errors"].values()
    assert output["absolute_quantiles"]["1"] == pytest.approx(errors[-1], rel=1e-5)
    assert output["mean"] == pytest.approx(float(np.mean(predicted - np.arange(12))), rel=1e-5)
    assert found["own"]["metrics"] == {"half": 0.5} and "classes" not in found["own"]


def test_many_classes_have_their_most_frequent_confusions():
    names = [f"class {number}" for number in range(300)]
    true = np.arange(300)
    told = np.where(true < 3, 7, true)
    found = reports.of_classes(np.append(true, 0), np.append(told, 7), names)
    assert "confusion_matrix" not in found and len(found["classes"]) == 300
    assert found["most_frequent_confusions"][0] == ["class 0", "class 7", 2]
    assert len(found["most_frequent_confusions"]) == 3


def test_a_damaged_report_is_replaced(build):
    rows = Dataset.from_list(read_rows("sentiment", "validation", 4))
    trainer = build({"sentiment": SequenceClassification(label_names=LABELS)}, {"sentiment": rows})
    file_of(trainer).parent.mkdir(exist_ok=True)
    file_of(trainer).write_text("{")
    trainer.save_metrics("eval", trainer.evaluate())
    assert list(written(trainer)) == ["validation"]


def test_other_types_report_their_metrics(build):
    answers = {"text": ["film"], "answer_start": [7]}
    rows = [{"question": "what?", "context": "a good film", "answers": answers}] * 2
    trainer = build({"qa": QuestionAnswering()}, {"qa": Dataset.from_list(rows)})
    trainer.save_metrics("eval", trainer.evaluate())
    own = written(trainer)["validation"]["qa"]
    assert own["metrics"].keys() == {"f1", "exact_match"} and own["type"] == "question-answering"


def test_tensorboard_shows_the_confusions_of_every_evaluation(build, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    image = pytest.importorskip("PIL.Image")
    rows = Dataset.from_list([{**row, "label": "positive"} for row in read_rows("sentiment", "validation", 6)])
    kwargs = {"report_to": "tensorboard"}
    trainer = build({"sentiment": SequenceClassification(label_names=LABELS)}, {"sentiment": rows}, **kwargs)
    found = trainer.evaluate()
    (file,) = tmp_path.rglob("events.out.*")
    (picture,) = tensorboard.EventAccumulator(str(file)).Reload().Images("eval/sentiment_confusions")
    path = tmp_path / "confusions.png"
    path.write_bytes(picture.encoded_image_string)
    drawn = image.open(path)
    share = found["eval_sentiment_accuracy"]
    bottom = drawn.size[1] - 20
    assert drawn.getpixel((drawn.size[0] - 20, bottom)) == color(share)
    assert drawn.getpixel((drawn.size[0] - 84, bottom)) == color(1 - share)
