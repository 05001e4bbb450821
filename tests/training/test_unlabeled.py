"""``predict`` on rows without labels: the logits of all rows, as with labels, and neither labels nor metrics."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Value
from parameters import few
from reading import TASKS, rows_of

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification, TokenClassification

ONE = {"problem_type": "single_label_classification", "label_names": ["a", "b"]}
MADE = {
    **TASKS,
    "sequence-classification": lambda: SequenceClassification(**{**ONE, "label_names": ["negative", "positive"]}),
}
FAMILY = {"text-generation": "gpt2", "translation": "t5", "summarization": "t5", "text2text-generation": "t5"}


@pytest.fixture
def build(backbone_path, arguments):
    def make(tasks, family="bert", **kwargs):
        from transformers import AutoTokenizer

        path = backbone_path(family)
        return MultiTaskTrainer(
            model=MultiTaskModel.from_backbone(path, tasks=tasks),
            args=arguments(),
            processing_class=AutoTokenizer.from_pretrained(path),
            **kwargs,
        )

    return make


def test_a_comparison_counts_the_rows_with_a_label(build):
    trainer = build({"t": MADE["sequence-classification"]()})
    rows = rows_of("sequence-classification", 8).to_list()
    some = Dataset.from_list([row if number < 2 else {**row, "label": None} for number, row in enumerate(rows)])
    for prefix in ("eval", "test"):
        trainer.evaluate({"t": some}, metric_key_prefix=prefix)
    run = trainer.card.run()
    assert run.rows["validation"] == run.rows["test"] == {"t": 8}
    assert run.labeled == {"validation": {"t": 2}, "test": {"t": 2}}


@pytest.mark.parametrize("kind", few(TASKS, ["sequence-classification", "token-classification", "question-answering"]))
def test_every_type_predicts_rows_without_labels(kind, build):
    trainer = build({"t": MADE[kind]()}, FAMILY.get(kind, "bert"))
    rows = rows_of(kind, 6)
    target = trainer.tasks["t"].target_column
    known = trainer.predict({"t": rows.select(range(5))})["t"]
    bare = rows.remove_columns([target]) if target not in trainer.tasks["t"].input_columns else rows
    found = trainer.predict({"t": bare.select(range(5))})["t"]
    same = known.predictions.shape == found.predictions.shape
    assert same and np.allclose(known.predictions, found.predictions, atol=1e-5)
    if bare is not rows:
        assert found.label_ids is None and found.metrics == {}
        empty = bare.add_column(target, [None] * len(bare))
        assert trainer.predict({"t": empty})["t"].predictions.shape[0] == 6


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (ONE, ["a", "b"]),
        ({"problem_type": "multi_label_classification", "label_format": "vector"}, [[0, 1], [1, 1]]),
        ({"problem_type": "multi_label_classification", "label_format": "set"}, [["a"], ["a", "b"]]),
        ({"label_separator": ";"}, ["a", "a;b"]),
        ({"problem_type": "regression"}, [[0.5, 1.0], [1.0, 0.5]]),
        ({"problem_type": "regression", "label_names": None}, [0.5, 1.0]),
    ],
)
def test_every_form_of_label(values, labels, build):
    trainer = build({"t": SequenceClassification(**{"label_names": ["a", "b"], **values})})
    rows = Dataset.from_dict({"text": ["fine", "bad film"], "label": labels})
    known, found = (trainer.predict({"t": data})["t"] for data in (rows, rows.remove_columns(["label"])))
    assert np.allclose(known.predictions, found.predictions, atol=1e-6) and found.label_ids is None


def test_classes_of_minus_1_are_no_labels_and_spans_may_be_missing(build):
    tasks = {
        "s": SequenceClassification(dataset="d", **ONE),
        "n": TokenClassification(
            dataset="d", text_column="text", spans_column="spans", label_names=["O", "B-X", "I-X"]
        ),
    }
    trainer = build(tasks, compute_metrics={"s": lambda _: pytest.fail("there are no labels")})
    rows = Dataset.from_dict({"text": ["fine", "bad film"], "label": [-1, -1]})
    rows = rows.cast_column("label", Value("int64")).cast_column("label", ClassLabel(names=["a", "b"]))
    found = trainer.predict({"d": rows})
    assert {name: output.predictions.shape[0] for name, output in found.items()} == {"s": 2, "n": 2}
    assert all(output.label_ids is None and output.metrics == {} for output in found.values())


def test_rows_without_a_label_among_others_are_left_out_and_an_evaluation_needs_labels(build):
    trainer = build({"t": SequenceClassification(**ONE)})
    rows = Dataset.from_dict({"text": ["fine", "bad film"], "label": ["a", None]})
    assert trainer.predict({"t": rows})["t"].predictions.shape == (1, 2)
    with pytest.raises(ValueError, match="has no column 'label'"):
        trainer.evaluate({"t": rows.remove_columns(["label"])})
    with pytest.raises(ValueError, match="has no column 'text'"):
        trainer.predict({"t": Dataset.from_dict({"sentence": ["fine"]})})
