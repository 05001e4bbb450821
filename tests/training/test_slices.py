"""Metrics by the values of columns: those of the rows alone, whatever the order of rows, and what is refused."""

import math

import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from tiny import make_tokenizer, read_rows

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification, TokenClassification
from hf_multitask.hub.records import by_task, whole
from hf_multitask.tasks import SentenceSimilarity, TextGeneration
from hf_multitask.tasks.slicing import quoted, slice_of, unquoted

LANGUAGES = ["de", "en", "x/y = ~"]


def sentiment_rows(count=18):
    rows = read_rows("sentiment", "validation", count)
    cells = [*LANGUAGES, None]
    return [
        {**row, "language": cells[place % 4], "kind": place % 2, "long": float(place % 3)}
        for place, row in enumerate(rows)
    ]


def ner_rows(count=12):
    return [{**row, "kind": place % 2} for place, row in enumerate(read_rows("ner", "validation", count))]


@pytest.fixture
def build(backbone_path, arguments):
    def make(tasks, data, family="bert", **kwargs):
        model = MultiTaskModel.from_backbone(backbone_path(family), tasks=tasks)
        own = {key: kwargs.pop(key) for key in list(kwargs) if key == "compute_metrics"}
        return MultiTaskTrainer(
            model, arguments(**kwargs), eval_dataset=data, processing_class=make_tokenizer(family), **own
        )

    return make


def labelled(**kwargs):
    return SequenceClassification(label_names=["negative", "positive"], **kwargs)


def words(**kwargs):
    names = sorted({tag for row in read_rows("ner", "validation") for tag in row["ner_tags"]})
    return TokenClassification(label_names=names, **kwargs)


def test_slices_are_the_metrics_of_their_rows_alone(build):
    tasks = {
        "sentiment": labelled(slice_columns=["language", "long"], metrics=["accuracy", "macro_f1", "roc_auc"]),
        "ner": words(slice_columns=["kind"]),
    }
    data = {"sentiment": Dataset.from_list(sentiment_rows()), "ner": Dataset.from_list(ner_rows())}
    trainer = build(tasks, data)
    found = trainer.evaluate()
    for task, column, cell, key in (
        ("sentiment", "language", "de", "language=de"),
        ("sentiment", "language", "x/y = ~", "language=x%2Fy%20%3D%20%7E"),
        ("sentiment", "long", 2.0, "long=2"),
        ("ner", "kind", 1, "kind=1"),
    ):
        alone = trainer.evaluate({task: data[task].filter(lambda row, column=column, cell=cell: row[column] == cell)})
        for metric in tasks[task].metrics or tasks[task].metric_names:
            assert found[f"eval_{task}_{metric}/{key}"] == pytest.approx(
                alone[f"eval_{task}_{metric}"], abs=1e-12, nan_ok=True
            )
    keys = [key for key in found if "/language=" in key]
    assert len(keys) == 9  # three values, three metrics: no slice of rows without a value
    own, _ = by_task(found, trainer.tasks, trainer.progress.metrics)
    assert {whole(metric) for metric in own["sentiment"]} == {"loss", "accuracy", "macro_f1", "roc_auc"}
    order = np.random.default_rng(0).permutation(18)
    again = trainer.evaluate({**data, "sentiment": data["sentiment"].select(order)})
    assert {key: again[key] for key in keys} == pytest.approx({key: found[key] for key in keys}, nan_ok=True)


def test_a_metric_that_a_slice_does_not_define_is_missing_and_nothing_else(build, caplog):
    rows = [{**row, "label": "positive" if row["language"] == "de" else row["label"]} for row in sentiment_rows()]
    task = labelled(slice_columns=["language"], metrics=["accuracy", "roc_auc"])
    trainer = build({"sentiment": task}, {"sentiment": Dataset.from_list(rows)})
    found = trainer.evaluate()
    assert math.isnan(found["eval_sentiment_roc_auc/language=de"])
    assert math.isfinite(found["eval_sentiment_accuracy/language=de"]) and math.isfinite(
        found["eval_sentiment_roc_auc"]
    )
    assert math.isfinite(found["eval_sentiment_roc_auc/language=en"])


def test_metrics_of_ones_own_are_sliced_and_may_fail_for_a_slice(build):
    def own(prediction):
        if len(set(prediction.label_ids.tolist())) < 2:
            raise ValueError("one class only")
        return {"zeros": float((prediction.label_ids == 0).mean())}

    rows = [{**row, "kind": int(row["label"] == "positive")} for row in sentiment_rows()]
    rows[0]["kind"] = 1 - rows[0]["kind"]
    metrics = {"sentiment": own}
    trainer = build(
        {"sentiment": labelled(slice_columns=["kind"])}, {"sentiment": Dataset.from_list(rows)}, compute_metrics=metrics
    )
    found = trainer.evaluate()
    values = [found[f"eval_sentiment_zeros/kind={value}"] for value in (0, 1)]
    assert sum(map(math.isnan, values)) == 1 and sum(map(math.isfinite, values)) == 1


def test_classes_are_their_names_and_logs_have_twenty_values(build):
    rows = [{**row, "number": place if place < 40 else 7} for place, row in enumerate(sentiment_rows(60))]
    data = Dataset.from_list(rows).cast_column("kind", ClassLabel(names=["a", "b"]))
    trainer = build({"sentiment": labelled(slice_columns=["kind", "number"])}, {"sentiment": data})
    found = trainer.evaluate()
    assert {"eval_sentiment_accuracy/kind=a", "eval_sentiment_accuracy/kind=b"} <= found.keys()
    own = [key for key in found if key.startswith("eval_sentiment_accuracy/number=")]
    assert len(own) == 20 and "eval_sentiment_accuracy/number=7" in own


def test_rows_that_are_split_or_grouped_are_sliced_by_their_parts(build):
    rows = [{"text": " ".join(["a good film"] * (1 + 9 * (place % 2))), "kind": place % 2} for place in range(6)]
    data = {"lm": Dataset.from_list(rows)}
    trainer = build({"lm": TextGeneration(block_size=16, slice_columns=["kind"])}, data, family="gpt2")
    found = trainer.evaluate()
    for kind in (0, 1):
        alone = trainer.evaluate({"lm": data["lm"].filter(lambda row, kind=kind: row["kind"] == kind)})
        for metric in ("token_accuracy", "perplexity"):
            assert found[f"eval_lm_{metric}/kind={kind}"] == pytest.approx(alone[f"eval_lm_{metric}"])

    texts = [row["text"] for row in read_rows("sentiment", "validation", 14)]
    pairs = [{"sentence1": one, "sentence2": one[::-1], "kind": place % 3} for place, one in enumerate(texts)]
    trainer = build(
        {"pairs": SentenceSimilarity(negatives=4, slice_columns=["kind"])}, {"pairs": Dataset.from_list(pairs)}
    )
    found, counts = trainer.evaluate(), [5, 5, 4]
    mean = sum(found[f"eval_pairs_accuracy/kind={kind}"] * count for kind, count in enumerate(counts)) / 14
    assert mean == pytest.approx(found["eval_pairs_accuracy"])


def test_a_slice_may_be_the_metric_of_the_best_model(build):
    data = {"sentiment": Dataset.from_list(sentiment_rows())}
    watched = {"metric_for_best_model": "sentiment_accuracy/language=de", "eval_strategy": "epoch"}
    trainer = build({"sentiment": labelled(slice_columns=["language"])}, data, **watched)
    assert trainer.args.greater_is_better
    with pytest.raises(ValueError, match="names the metric 'accuracy/kind=1' of task 'sentiment'"):
        build(
            {"sentiment": labelled(slice_columns=["language"])},
            data,
            **watched | {"metric_for_best_model": "sentiment_accuracy/kind=1"},
        )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("language", "`slice_columns` should be a list of different columns"),
        ([], "one or more"),
        (["kind", "kind"], "different columns"),
        ([1], "should be a list"),
        (["languag"], "names the column 'languag', and the evaluation data have .* Did you mean 'language'"),
        (["tags"], "a slice needs one text, number or boolean in every row. Name another column"),
    ],
)
def test_what_cannot_be_sliced_is_refused(build, columns, message):
    rows = [{**row, "tags": ["a"]} for row in sentiment_rows(4)]
    with pytest.raises(ValueError, match=message):
        build({"sentiment": labelled(slice_columns=columns)}, {"sentiment": Dataset.from_list(rows)})


def test_rows_of_training_and_of_a_prediction_need_no_slices(build, backbone_path, arguments):
    plain = Dataset.from_list(read_rows("sentiment", "validation", 6))
    trainer = build({"sentiment": labelled(slice_columns=["kind"])}, {"sentiment": Dataset.from_list(sentiment_rows())})
    assert set(trainer.predict({"sentiment": plain})["sentiment"].metrics) == {
        f"test_sentiment_{metric}" for metric in ("loss", "accuracy", "macro_f1", "f1")
    }
    with pytest.raises(ValueError, match="the test data have"):
        trainer.evaluate({"sentiment": plain}, metric_key_prefix="test")


@pytest.mark.parametrize("text", ["de", "a b", "~", "100 %", "ä/=", "", "A-Z_.9"])
def test_quoted_values_are_safe_and_are_found_again(text):
    assert unquoted(quoted(text)) == text and set(quoted(text)) <= set(
        "%ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
    )


def test_numbers_with_gaps_keep_their_names():
    assert [slice_of(cell) for cell in (1, 1.0, 0.5, True, None, math.nan)] == ["1", "1", "0.5", "True", "/", "/"]
