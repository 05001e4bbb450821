import numpy as np
import pytest
from datasets import Dataset

from hf_multitask import SequenceClassification, TokenClassification
from hf_multitask.tasks import build_task


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"type": "sequence-clasification"},
            "unknown type 'sequence-clasification'.* Did you mean 'sequence-classification'?",
        ),
        (
            {"type": "token-classification", "tag_column": "x"},
            "has no argument 'tag_column'.* Did you mean 'tags_column'?",
        ),
        (
            {"type": "token-classification", "label_names": "O"},
            "should be a list of strings. Found `label_names = 'O'`",
        ),
        ({"type": "token-classification", "label_names": ["O", "O"]}, "`label_names` should be different names"),
        (
            {"type": "token-classification", "max_length": 0},
            "`max_length` should be a whole number of tokens, 1 or more. Found `max_length = 0`",
        ),
        (
            {"type": "token-classification", "unseen_labels": "eror"},
            "`unseen_labels` should be one of .* Did you mean 'error'?",
        ),
        ({"type": "sequence-classification", "problem_type": "regresion"}, "Did you mean 'regression'?"),
        (
            {"type": "sequence-classification", "problem_type": "single_label_classification", "label_names": ["a"]},
            "needs at least two label_names",
        ),
        (
            {"type": "text-classification"},
            "unknown type 'text-classification'.* Did you mean 'sequence-classification'?",
        ),
        ({"type": "sentiment-analysis"}, "Did you mean 'sequence-classification'?"),
        ({"type": "NER"}, "Did you mean 'token-classification'?"),
        ({"type": "TokenClassification"}, "Did you mean 'token-classification'?"),
        ({"type": "Token_Classification"}, "Did you mean 'token-classification'?"),
        ({"type": "extractive-qa"}, "Did you mean 'question-answering'?"),
        ({"type": "mlm"}, "Did you mean 'fill-mask'?"),
        ({"type": "image-segmentation-of-cats"}, "Register a type of your own with register_task first"),
        ({"type": {}}, "has the unknown type {}"),
        ({}, "has no 'type'"),
        ({"type": "token-classification", "tags_column": ""}, "`tags_column` should be the name of a column"),
        ({"type": "fill-mask", "name": "u"}, "also has the name 'u'"),
        ({"type": "fill-mask", "mlm_probability": "0.2"}, "`mlm_probability` should be a number.*Leave out the quotes"),
        (
            {"type": "fill-mask", "text_column": None},
            "`text_column` should be a string or a list of strings. Found `text_column = None`",
        ),
        ({"type": "question-answering", "unanswerable": "no"}, "`unanswerable` should be true or false.*the quotes"),
        ({"type": "sentence-similarity", "score_range": ["0", 5]}, "`score_range` should be a list of numbers"),
    ],
)
def test_unusable_arguments_fail_when_built(values, message):
    with pytest.raises(ValueError, match=f"Task 't'.*{message}"):
        build_task("t", values)


def test_error_of_a_nameless_task_names_its_class():
    with pytest.raises(ValueError, match=r"SequenceClassification: `problem_type`"):
        SequenceClassification(problem_type="x")


def test_tags_that_are_not_bio_are_measured_by_accuracy():
    task = TokenClassification(label_names=["NOUN", "VERB"])
    logits = np.eye(2)[[[0, 1, 0], [1, 1, 0]]]
    labels = np.array([[0, 0, -100], [1, -100, 0]])
    assert task.measure(logits, labels, []) == {"accuracy": pytest.approx(3 / 4)}


def test_unseen_tags_are_missed_spans():
    task = TokenClassification(label_names=["O", "B-X"])
    logits = np.eye(2)[[[1, 0]]]
    assert task.measure(logits, np.array([[1, 2]]), ["B-Y"])["f1"] == pytest.approx(2 / 3)


def test_label_order_is_training_first_then_the_others_each_sorted():
    def rows(*tags):
        return Dataset.from_list([{"tokens": list("ab")[: len(tags)], "ner_tags": list(tags)}])

    task = TokenClassification().resolve(rows("O", "B-X"), [rows("B-C", "O"), rows("B-A", "O")])
    assert task.label_names == ["B-X", "O", "B-C", "B-A"]
