"""Spans that nest and overlap: what is scored, learned, measured, answered and reported."""

import itertools
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from parameters import few
from tiny import CONFIGS, make_tokenizer
from transformers import AutoTokenizer, pipeline

from hf_multitask import (
    MultiTaskModel,
    MultiTaskPipeline,
    MultiTaskTrainer,
    SequenceClassification,
    SpanClassification,
    TokenClassification,
)
from hf_multitask.modeling.inputs import Encoder
from hf_multitask.modeling.span_classification import NO_SPAN, SCORED, first_units, spans_in
from hf_multitask.tasks.span_classification import SpanRow

PLACES = ["London", "Paris", "Madrid", "Chicago"]


def nested_rows(count=16, seed=0):
    """Names of teams that hold a place and overlap with a title, and a place that is also a name."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        place, other = chance.sample(PLACES, 2)
        team = f"the {place} film club"
        text = f"In {other}, {team} was good."
        start, end = text.index(team), text.index(team) + len(team)
        inner = text.index(place)
        spans = [
            (start, end, "TEAM"),
            (inner, inner + len(place), "PLACE"),
            (inner, end - len(" club"), "TITLE"),
            (end - len("film club"), end, "CLUB"),
            (text.index(other), text.index(other) + len(other), "PLACE"),
            (text.index(other), text.index(other) + len(other), "NAME"),  # a second label of the same span
        ]
        named = [dict(zip(("start", "end", "label"), span, strict=True)) for span in spans]
        rows.append({"text": text, "spans": named, "label": other})
    return rows


def gold_of(rows):
    return [{(span["start"], span["end"], span["label"]) for span in row["spans"]} for row in rows]


def told_of(answers):
    return [{(span["start"], span["end"], span["entity_group"]) for span in answer["spans"]} for answer in answers]


def f1_of(told, gold):
    hits = sum(len(one & other) for one, other in zip(told, gold, strict=True))
    return 2 * hits / max(sum(map(len, told)) + sum(map(len, gold)), 1)


@pytest.fixture
def build(backbone_path, arguments):
    def make(task, rows, evaluation=None, model=None, others=None, side="right", **kwargs):
        torch.manual_seed(1)
        names = {"spans": task, **(others or {})}
        for one in names.values():
            one.dataset = "d"
        model = model or MultiTaskModel.from_backbone(backbone_path(), tasks=names, dropout=0.0)
        return MultiTaskTrainer(
            model,
            arguments(**kwargs),
            train_dataset={"d": Dataset.from_list(rows)},
            eval_dataset={"d": Dataset.from_list(rows if evaluation is None else evaluation)},
            processing_class=AutoTokenizer.from_pretrained(backbone_path(), truncation_side=side),
        )

    return make


def test_nested_spans_are_learned_by_heart_and_measured_as_answered(build, tmp_path):
    rows = nested_rows(8)
    trainer = build(
        SpanClassification(max_span_length=10, negative_spans=40, metrics=["f1", "recall", "macro_f1"]),
        rows,
        others={"place": SequenceClassification()},  # of the same rows, which one pass reads
        max_steps=200,
        logging_steps=200,
        learning_rate=5e-3,
        per_device_train_batch_size=8,
    )
    assert trainer.tasks["spans"].label_names == ["CLUB", "NAME", "PLACE", "TEAM", "TITLE"]
    trainer.train()
    found = trainer.evaluate()
    assert found["eval_spans_f1"] >= 0.95 and found["eval_spans_recall"] >= 0.95
    assert [name for name in found if name.startswith("eval_spans")] == [
        f"eval_spans_{name}" for name in ("loss", "f1", "recall", "macro_f1")
    ]
    trainer.save_model(str(tmp_path))
    texts = [row["text"] for row in rows]
    answers = pipeline("multitask", str(tmp_path))(texts, tasks=["spans"])
    assert f1_of(told_of(answers), gold_of(rows)) == pytest.approx(found["eval_spans_f1"])
    for text, answer in zip(texts, answers, strict=True):
        assert all(span["word"] == text[span["start"] : span["end"]] for span in answer["spans"])
        order = [(span["start"], -span["end"]) for span in answer["spans"]]
        assert order == sorted(order)  # outer spans first
    (of_words,) = pipeline("multitask", str(tmp_path))([texts[0].split()], tasks=["spans"])
    assert {tuple(span["word_indices"]) for span in of_words["spans"]} >= {(2, 3, 4, 5), (3,), (4, 5)}


@pytest.fixture
def head(backbone_path):
    task = SpanClassification(label_names=["a", "b", "c"], max_span_length=4)
    return MultiTaskModel.from_backbone(backbone_path(), tasks={"t": task}).double().eval().heads["t"]


def test_the_loss_is_that_of_a_loop(head):
    logits = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    scored = [[(0, 0), (1, 3), (2, 2), (3, 4)], [(1, 1)]]
    spans = [[(0, 0, 1), (1, 3, 0), (1, 3, 2), (2, 4, 3)], []]  # the last one has a label that is unknown
    labels = torch.full((2, 9, 2), -100)
    expected = [0.0, 0.0]
    for row in range(2):
        entries = [(first * 4 + last - first, SCORED) for first, last in scored[row]]
        entries += [(first * 4 + last - first, label) for first, last, label in spans[row]]
        labels[row, : len(entries)] = torch.tensor(entries)
        for (first, last), label in itertools.product(scored[row], range(3)):
            logit = logits[row, first, last - first, label]
            expected[row] -= torch.nn.functional.logsigmoid(logit if (first, last, label) in spans[row] else -logit)
    assert head.loss(logits, labels).tolist() == pytest.approx([float(one) for one in expected], abs=1e-12)
    assert head.items(labels).tolist() == [4, 1]
    assert head.references(labels)[0].tolist() == [list(span) for span in spans[0]]
    assert (head.references(labels)[1] == -100).all()
    for row, answers in enumerate(head.predictions(logits, labels).tolist()):
        found = {(int(first), int(last), int(label)): score for first, last, label, score in answers if first >= 0}
        every = itertools.product(range(5), range(4), range(3))
        high = {(i, i + w, c): logits[row, i, w, c].sigmoid() for i, w, c in every if logits[row, i, w, c] > 0}
        assert found == pytest.approx({key: float(value) for key, value in high.items()}, abs=1e-6)


def test_logits_are_those_of_two_states_and_a_width_whatever_the_padding(head):
    states = torch.randn(2, 6, 32, dtype=torch.float64)
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])

    class States:
        last_hidden_state = states

    logits = head(States, None, mask)
    assert logits.shape == (2, 6, 4, 3)
    for row, first, width in itertools.product(range(2), range(6), range(4)):
        last = first + width
        if last >= mask[row].sum():
            assert (logits[row, first, width] == NO_SPAN).all()
            continue
        hidden = head.first(states[row, first]) + head.last(states[row, last]) + head.widths.weight[width]
        torch.testing.assert_close(logits[row, first, width], head.classifier(hidden.relu()))


def test_negatives_are_drawn_for_each_row_and_step_and_evaluation_scores_all_spans():
    task = SpanClassification(label_names=["a", "b"], max_span_length=3, negative_spans=5)
    tokens, spans = np.array([1, 2, 4, 5, 6, 7]), np.array([[1, 2, 0], [1, 2, 1], [5, 5, 1], [6, 7, 2]])
    every = {(i, j) for i, j in itertools.product(tokens.tolist(), repeat=2) if 0 <= j - i < 3}

    def scored(row, seed):
        _, entries = task.masked({}, row.stored(), None, np.random.default_rng(seed))
        places = [(place // 3, place // 3 + place % 3) for place, kind in entries.tolist() if kind == SCORED]
        assert len(set(places)) == len(places)
        named = [(place // 3, place // 3 + place % 3, kind) for place, kind in entries.tolist() if kind != SCORED]
        assert sorted(named) == sorted(map(tuple, spans.tolist()))
        return set(places)

    known = {(1, 2), (5, 5)}  # the other span has a label that is unknown, and says nothing of the known ones
    drawn = [scored(SpanRow(False, tokens, spans), seed) for seed in (0, 0, 1)]
    assert all(one >= known and len(one) == 7 and one <= every - {(6, 7)} for one in drawn)
    assert drawn[0] == drawn[1] != drawn[2]
    assert scored(SpanRow(True, tokens, spans), 0) == every - {(6, 7)}
    task.negative_spans = None
    assert scored(SpanRow(False, tokens, spans), 0) == every - {(6, 7)}


def test_what_is_never_answered_is_counted_and_counts_as_gold(build, caplog, arguments):
    text = "London was good, and Paris was not, and then there was the film that I liked so much in Madrid."
    spans = [
        {"start": 0, "end": 6, "label": "PLACE"},
        {"start": 0, "end": 33, "label": "TEXT"},  # longer than the maximum
        {"start": text.index("Madrid"), "end": len(text) - 1, "label": "PLACE"},  # cut off
        {"start": 6, "end": 7, "label": "PLACE"},  # a space
    ]
    rows = [{"text": text, "spans": spans}, {"text": text, "spans": None}, {"text": "", "spans": []}]
    trainer = build(SpanClassification(max_span_length=5, max_length=16), rows)
    for said in (
        "1 labels (train) are of spans that are longer than max_span_length. They do not train.",
        "1 labels (train) are of spans that were cut off with the rest of a long text. They do not train.",
        "1 labels (evaluation) are of words or spans without a token of their own, so no token carries them. They "
        "count as gold, and as not found.",
        "1 of 3 rows of the train data have no label.",
        "2 of 3 rows of 'd' (train) are longer than 16 tokens and were cut.",
    ):
        assert said in caplog.text
    head = trainer.model.heads["spans"]
    with torch.no_grad():  # answers every span, with both labels
        head.classifier.weight.zero_()
        head.classifier.bias.fill_(1.0)
    found = trainer.evaluate()
    pipe = MultiTaskPipeline(model=trainer.model, tokenizer=trainer.processing_class)
    told = told_of(pipe([row["text"] for row in (rows[0], rows[2])], tasks=["spans"]))
    gold = gold_of([rows[0]])[0]
    assert found["eval_spans_recall"] == 1 / 4 == len(told[0] & gold) / len(gold)
    assert found["eval_spans_precision"] == pytest.approx(1 / len(told[0])) and told[1] == set()
    assert "an input is longer than 16 tokens and was cut" in caplog.text
    predictions = trainer.predict({"d": Dataset.from_list([{"text": text}])})["spans"].predictions
    assert predictions.shape[0] == 1 and predictions.shape[2] == 4


def test_unseen_labels_count_as_wrong_or_are_an_error(build, caplog):
    rows = [{"text": "London was good.", "spans": [{"start": 0, "end": 6, "label": "PLACE"}]}]
    others = [{"text": "London was good.", "spans": [{"start": 0, "end": 6, "label": "CITY"}]}]
    build(SpanClassification(), rows, others).evaluate()  # names of all splits are read
    task = SpanClassification(label_names=["PLACE"])
    found = build(task, rows, [*rows, *others]).evaluate()
    assert found["eval_spans_recall"] <= 0.5
    assert "labels [CITY] are none of label_names and count as wrong" in caplog.text
    with pytest.raises(ValueError, match="row 0 of the train data has the label 'CITY' in column 'spans'"):
        build(SpanClassification(label_names=["PLACE"]), others, rows)
    with pytest.raises(ValueError, match="has the label 'CITY'"):
        build(SpanClassification(label_names=["PLACE"], unseen_labels="error"), rows, others)


@pytest.mark.parametrize("family", few(CONFIGS, ["bert", "gpt2", "deberta-v2"]))
def test_spans_come_out_as_they_went_in(family):
    text = 'In Oslo, (New York)\'s  film: 😀 caf\u00e9, e-mail U.K. rated it; "Ada Lovelace" met Bob.'
    words = ["Oslo", "New York", "York)'s  film", "film", "e-mail", "e-mail U.K.", "U.K.", '"Ada Lovelace', "Bob"]
    tokenizer = make_tokenizer(family)
    units, tokens = first_units(text, Encoder(tokenizer, CONFIGS[family]()).windows(text))
    for word in words:
        start, end = text.index(word), text.index(word) + len(word)
        inside = [number for number, (first, last) in enumerate(units) if first < end and last > start]
        found = [(tokens[inside[0]], tokens[inside[-1]], 0, 0.75)]
        assert spans_in(text, units, tokens, found, tokenizer.all_special_tokens) == {(start, end, 0): 0.75}, word
    assert spans_in(text, units, tokens, [(0, len(text), 0, 0.9)], []) == {}


def test_a_long_text_shares_its_first_window_with_tags(build):
    text = "London was good, and Paris was not. " * 8
    spans = [{"start": 0, "end": 6, "label": "PLACE"}, {"start": 0, "end": 15, "label": "TEXT"}]
    tags = [{"start": 0, "end": 6, "label": "PLACE"}]
    rows = [{"text": text, "spans": spans, "tags": tags}]
    ner = TokenClassification(text_column="text", spans_column="tags", max_length=16)
    trainer = build(SpanClassification(max_length=16, metrics=["recall"]), rows, others={"ner": ner}, max_steps=1)
    (dataset,) = trainer.train_dataset.datasets
    row = SpanRow.of(dataset.rows[0]["labels:spans"])
    assert row.spans[:, 0].tolist() == [1, 1] and row.tokens.max() == 14  # between the special tokens
    trainer.train()
    assert {"eval_spans_recall", "eval_ner_f1"} <= trainer.evaluate().keys()


def test_of_a_text_that_is_cut_at_its_beginning_the_end_is_read(build, caplog):
    text = "London was good, and Paris was not. " * 40  # so long that not all of it is tokenized
    places = [(0, len("London")), (text.rindex("not"), text.rindex("."))]
    spans = [{"start": start, "end": end, "label": "PLACE"} for start, end in places]
    trainer = build(SpanClassification(max_length=14, max_span_length=1), [{"text": text, "spans": spans}], side="left")
    assert "1 labels (train) are of spans that were cut off" in caplog.text
    head = trainer.model.heads["spans"]
    with torch.no_grad():
        head.classifier.weight.zero_()
        head.classifier.bias.fill_(1.0)
    pipe = MultiTaskPipeline(model=trainer.model, tokenizer=trainer.processing_class)
    (told,) = told_of([pipe(text, tasks=["spans"])])
    assert (spans[1]["start"], spans[1]["end"], "PLACE") in told and trainer.evaluate()["eval_spans_recall"] == 0.5
    assert trainer.evaluate()["eval_spans_precision"] == pytest.approx(1 / len(told))


SPAN = {"start": 0, "end": 6, "label": "PLACE"}


@pytest.mark.parametrize(
    ("given", "cell", "message"),
    [
        ({"max_span_length": 0}, [SPAN], "`max_span_length` should be a whole number of tokens, 1 or more. Found"),
        ({"max_span_length": None}, [SPAN], "`max_span_length` should be a whole number of tokens, 1 or more. Found"),
        ({"negative_spans": -1}, [SPAN], "`negative_spans` should be a whole number, 0 or more. Found"),
        ({"label_names": []}, [SPAN], "`label_names` should be different names, one or more"),
        ({"metrics": ["accuracy"]}, [SPAN], "`metrics` has 'accuracy', and this task can have f1, precision, recall"),
        ({}, [{**SPAN, "end": 99}], "row 0 of the train data has a span from 0 to 99 in column 'spans', but the text"),
        ({}, [{**SPAN, "end": 0}], "row 0 of the train data, column 'spans': the span .* goes from 0 to 0"),
        ({}, [[0, 6]], "is not a span. A span is"),
        ({}, [], "column 'spans' contains no span with a 'label'. Check it, or set label_names."),
        ({"spans_column": "span"}, [SPAN], "the train data has no column 'span'; .* Did you mean 'spans'?"),
    ],
)
def test_bad_input_is_one_sentence_before_training(given, cell, message, build):
    label_names = {} if not cell else {"label_names": ["PLACE"]}
    with pytest.raises(ValueError, match=message):
        build(SpanClassification(**{**label_names, **given}), [{"text": "London was good.", "spans": cell}])


def test_a_task_of_tags_names_this_type_where_spans_overlap(build):
    rows = [{"text": "London was good.", "spans": [SPAN, {**SPAN, "end": 10}]}]
    with pytest.raises(ValueError, match="one tag: remove one, or make the task one of span-classification"):
        build(TokenClassification(text_column="text", spans_column="spans"), rows)


def test_what_cannot_hold_the_head_refuses_it(build, tmp_path, backbone_path):
    rows = nested_rows(4)
    trainer = build(SpanClassification(max_span_length=5), rows)
    with pytest.raises(ValueError, match="has a head for which Transformers has no class, so it is not exported"):
        trainer.model.export_task("spans", tmp_path / "stock")
    changed = trainer.model.config.task("spans") | {"max_span_length": 6}
    with pytest.raises(ValueError, match=r"has a head for spans of up to 5 tokens. Found `max_span_length = 6`"):
        trainer.model.set_task("spans", changed)
    with pytest.raises(ValueError, match="cannot have a teacher: its outputs are not classes"):
        MultiTaskTrainer(
            trainer.model,
            trainer.args,
            train_dataset={"d": Dataset.from_list(rows)},
            processing_class=AutoTokenizer.from_pretrained(backbone_path()),
            teachers={"spans": trainer.model},
        )
    pipe = MultiTaskPipeline(model=trainer.model, tokenizer=trainer.processing_class)
    with pytest.raises(ValueError, match="Task 'spans' takes single texts"):
        pipe({"text": "a", "text_pair": "b"}, tasks=["spans"])
