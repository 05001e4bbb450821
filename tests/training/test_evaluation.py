"""Metrics and predictions of a trainer, against a loop over rows and whatever the batches."""

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score

from hf_multitask import MultiTaskTrainer


@pytest.fixture
def build(build_model, data, arguments, tokenizer):
    def make(model=None, args=None, **kwargs):
        kwargs.setdefault("train_dataset", data())
        return MultiTaskTrainer(
            model or build_model(), args or arguments(), **{"processing_class": tokenizer, **kwargs}
        )

    return make


def test_evaluation_is_what_a_naive_loop_measures(build, build_model, data, tokenizer):
    model, rows = build_model(), data(50, 30, "validation")
    rows["ner"] = rows["ner"].filter(lambda row: len(row["tokens"]) < 25)  # which fit into one window
    metrics = build(model, eval_dataset=rows).evaluate()
    model.eval()
    names = model.config.task("sentiment")["label_names"]
    right, losses = 0, []
    for row in rows["sentiment"]:
        with torch.no_grad():
            logits = model(**tokenizer(row["text"], return_tensors="pt", truncation=True)).logits["sentiment"][0]
        right += int(logits.argmax()) == names.index(row["label"])
        losses.append(-logits.log_softmax(-1)[names.index(row["label"])].item())
    assert metrics["eval_sentiment_accuracy"] == pytest.approx(right / 50)
    assert metrics["eval_sentiment_loss"] == pytest.approx(np.mean(losses), rel=1e-4)

    names = model.config.task("ner")["label_names"]
    true, predicted, losses = [], [], []
    for row in rows["ner"]:
        encoding = tokenizer(row["tokens"], is_split_into_words=True, return_tensors="pt", truncation=True)
        with torch.no_grad():
            logits = model(**encoding).logits["ner"][0]
        words = encoding.word_ids(0)
        firsts = [words.index(word) for word in sorted({word for word in words if word is not None})]
        true.append(row["ner_tags"][: len(firsts)])
        predicted.append([names[int(logits[token].argmax())] for token in firsts])
        losses += [-logits[token].log_softmax(-1)[names.index(tag)].item() for token, tag in zip(firsts, true[-1])]
    assert metrics["eval_ner_f1"] == pytest.approx(f1_score(true, predicted, zero_division=0))
    assert metrics["eval_ner_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert metrics["eval_average"] == pytest.approx((metrics["eval_sentiment_accuracy"] + metrics["eval_ner_f1"]) / 2)


def test_evaluation_does_not_depend_on_its_batches(build, arguments, data):
    rows = data(21, 13, "validation")
    ones, others = (
        build(args=arguments(per_device_eval_batch_size=size), eval_dataset=rows).evaluate() for size in (1, 8)
    )
    for key in ones:
        if "runtime" not in key and "per_second" not in key:
            assert ones[key] == pytest.approx(others[key], rel=1e-5), key


def test_predict_gives_a_dict_by_task_in_the_order_of_the_rows(build, build_model, data, tokenizer):
    model, rows = build_model(), data(20, 10, "test")
    output = build(model).predict(rows)
    assert list(output) == ["sentiment", "ner"]
    model.eval()
    for place in (0, 7, 19):
        with torch.no_grad():
            logits = model(**tokenizer(rows["sentiment"][place]["text"], return_tensors="pt", truncation=True)).logits
        np.testing.assert_allclose(output["sentiment"].predictions[place], logits["sentiment"][0], atol=1e-5)
    names = model.config.task("sentiment")["label_names"]
    assert output["sentiment"].label_ids.tolist() == [names.index(row["label"]) for row in rows["sentiment"]]
    assert "test_ner_f1" in output["ner"].metrics


def test_own_metrics_take_the_place_of_the_tasks(build, data):
    def share_of_zeros(prediction):
        assert prediction.predictions.shape == (9, 2)
        return {"zeros": float((prediction.label_ids == 0).mean()), "second": 7}

    metrics = build(eval_dataset=data(9, 4), compute_metrics={"sentiment": share_of_zeros}).evaluate()
    zeros = np.mean([row["label"] == "negative" for row in data(9, 4)["sentiment"]])
    assert metrics["eval_sentiment_zeros"] == pytest.approx(zeros)
    assert metrics["eval_average"] == pytest.approx((zeros + metrics["eval_ner_f1"]) / 2)
    assert "eval_sentiment_accuracy" not in metrics


def test_unseen_evaluation_labels_count_as_wrong(build, data):
    rows = data(10, 4, "validation")
    before = build(eval_dataset=rows).evaluate()
    odd = rows["sentiment"].map(lambda row, place: {"label": "odd" if place < 3 else row["label"]}, with_indices=True)
    after = build(eval_dataset=rows | {"sentiment": odd})
    metrics = after.evaluate()
    output = after.predict({"sentiment": odd})["sentiment"]
    right = (output.predictions.argmax(-1) == output.label_ids).sum()
    assert (output.label_ids[:3] == 2).all()
    assert metrics["eval_sentiment_accuracy"] == pytest.approx(right / 10)
    assert np.isfinite(metrics["eval_sentiment_loss"])
    assert before["eval_ner_f1"] == metrics["eval_ner_f1"]
