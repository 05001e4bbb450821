"""Options of losses: what is checked of them, balanced weights, and the losses of constant answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.utils.class_weight import compute_class_weight
from transformers import BertConfig

from hf_multitask import AudioClassification, MultipleChoice, SequenceClassification, TokenClassification
from hf_multitask.modeling.heads import SequenceClassificationHead
from hf_multitask.tasks import build_task
from hf_multitask.tasks.losses import balanced_weights

NAMES = ["no", "yes"]
SETS, NUMBERS = "multi_label_classification", "regression"
CONFIG = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"class_weights": {"yep": 2}},
            r"the label 'yep', which is not in label_names \(no, yes\). Did you mean 'yes'",
        ),
        ({"class_weights": {2: 2}}, "the label 2, which is not in label_names.* Remove it"),
        ({"class_weights": {True: 2}}, "the label True, which is not in"),
        ({"class_weights": {"yes": -1}}, "should be numbers, 0 or more. Found -1 for the label 'yes'. Set 1"),
        ({"class_weights": {"yes": float("nan")}}, "Found nan for the label 'yes'"),
        ({"class_weights": {"yes": 0, "no": 0}}, "are 0 for every label.* Give one above 0"),
        ({"class_weights": "balance"}, "should be 'balanced', or a weight by label.* Did you mean 'balanced'"),
        ({"class_weights": {}}, "Write it as {label: weight}"),
        ({"label_smoothing": 1}, "from 0 to less than 1. Found `label_smoothing = 1`. Set 0.1"),
        ({"label_smoothing": -0.1}, "Found `label_smoothing = -0.1`"),
        ({"label_smoothing": True}, "Found `label_smoothing = True`"),
        ({"loss": "focl"}, "`loss` should be one of cross_entropy, focal, mse.* Did you mean 'focal'"),
        ({"loss": "focal", "loss_kwargs": {"gama": 1}}, "the unknown key 'gama'; known keys are gamma. Did you mean"),
        ({"loss": "focal", "loss_kwargs": {"gamma": -1}}, "`gamma` .* should be a number, 0 or more. Found -1. Set 2"),
        ({"loss": "huber", "loss_kwargs": {"delta": 0}}, "`delta` .* should be a number, above 0. Found 0. Set 1"),
        ({"loss_kwargs": {"gamma": 1}}, "of the default loss has the unknown key 'gamma'.* Set loss to focal"),
        ({"loss_kwargs": [1]}, "`loss_kwargs` should be a mapping"),
        (
            {"loss": "focal", "problem_type": NUMBERS},
            "one of mse, huber, mae. Found `loss = 'focal'`. .* loss of classes",
        ),
        (
            {"loss": "mae", "problem_type": SETS},
            "one of cross_entropy, focal. Found `loss = 'mae'`. .* loss of numbers",
        ),
        ({"label_smoothing": 0.1, "problem_type": NUMBERS}, "numbers have no classes.* Leave it out"),
        ({"label_smoothing": 0.1, "label_separator": ";"}, "a label set has no single label to spread.* Leave it out"),
        ({"class_weights": {"yes": 2}, "problem_type": NUMBERS}, "its labels are numbers.* set weight_column"),
        ({"soft_labels": True, "problem_type": SETS}, "`soft_labels` applies to one label per row"),
        ({"soft_labels": True, "label_separator": ";"}, "applies to sets of labels, but problem_type is single"),
    ],
)
def test_an_option_that_is_not_usable_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        SequenceClassification(label_names=NAMES, **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "token-classification", "loss": "mae"}, "one of cross_entropy, focal. Found `loss = 'mae'`"),
        (
            {"type": "token-classification", "label_names": ["O"], "class_weights": {"B": 1}},
            "which is not in label_names",
        ),
        ({"type": "multiple-choice", "label_smoothing": 1.5}, "from 0 to less than 1"),
        ({"type": "multiple-choice", "loss": "focal"}, "'loss' is an argument of .*token-classification.* Remove it"),
        ({"type": "question-answering", "class_weights": {"a": 1}}, "'class_weights' is an argument of"),
        (
            {"type": "token-classification", "soft_labels": True},
            "'soft_labels' is an argument of .*audio-classification",
        ),
        ({"type": "fill-mask", "weight_column": "w"}, "`weight_column` is not for fill-mask.* Leave it out"),
        ({"type": "text-generation", "weight_column": "w"}, "`weight_column` is not for text-generation"),
        ({"type": "sequence-classification", "weight_column": ""}, "`weight_column` should be the name of a column"),
        ({"type": "sequence-classification", "label_smoothing": "0.1"}, "should be a number.* Leave out the quotes"),
    ],
)
def test_a_dict_with_an_option_that_the_type_cannot_have_is_an_error(values, message):
    with pytest.raises(ValueError, match=f"Task 't'.*{message}"):
        build_task("t", values)


def test_weights_are_kept_by_name_and_checked_when_labels_are_known():
    assert SequenceClassification(label_names=NAMES, class_weights={1: 2}).class_weights == {"yes": 2.0}
    task = build_task("t", {"type": "sequence-classification", "class_weights": {"yep": 2}})
    rows = Dataset.from_list([{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}])
    with pytest.raises(ValueError, match="Task 't': `class_weights` has the label 'yep'"):
        task.resolve(rows, [])
    kept = build_task(
        "t", {**SequenceClassification(label_names=NAMES, class_weights={"no": 3}).to_dict(), "name": "t"}
    )
    assert kept.class_weights == {"no": 3.0}
    assert replace(kept, label_smoothing=0.0).label_smoothing == 0.0


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.array([0] * 7 + [1] * 2 + [3] * 11)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    found = balanced_weights(np.bincount(labels, minlength=5).tolist(), len(labels))
    assert [found[place] for place in (0, 1, 3)] == pytest.approx(expected.tolist())
    assert found[2] == found[4] == 1  # without a training label
    one = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels == 1)
    assert balanced_weights([2, 0, 20], 20, sets=True) == [pytest.approx(one[1] / one[0]), 1, 1]


def constant(task, labels):
    """The least loss of constant logits, found by the optimizer."""
    head = SequenceClassificationHead({**task.to_dict(), "name": "t"}, CONFIG, pooling="native")
    targets = torch.tensor(labels)
    targets = targets if task.problem_type == "single_label_classification" and targets.dim() == 1 else targets.double()
    logits = torch.zeros(head.num_labels, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        given = logits.expand(len(targets), -1)
        loss = head.weighted_loss(given, targets).sum() / head.weighted_items(targets).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return closure().item()


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({}, [0, 1, 1, 1]),
        ({"class_weights": {"no": 3.0}}, [0, 1, 1, 1]),
        ({"class_weights": {"no": 3.0}, "label_smoothing": 0.2}, [0, 1, 1, 1]),
        ({"soft_labels": True, "class_weights": {"yes": 0.5}}, [[0.9, 0.1], [0.2, 0.8], [0.0, 1.0]]),
        ({"problem_type": SETS, "class_weights": {"no": 3.0}}, [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]),
        ({"problem_type": NUMBERS, "loss": "huber", "loss_kwargs": {"delta": 0.5}}, [[1.0, 0], [2, 9], [4, 1]]),
        ({"problem_type": NUMBERS, "loss": "mse"}, [[1.0, 0], [2, 9], [4, 1]]),
    ],
)
def test_the_loss_of_a_constant_answer_is_the_least(options, labels):
    task = SequenceClassification(label_names=NAMES, **{"problem_type": "single_label_classification", **options})
    assert task.constant_loss(labels, None, None) == pytest.approx(constant(task, labels), rel=1e-6)


def test_the_loss_of_a_constant_answer_with_other_losses():
    mae = SequenceClassification(problem_type=NUMBERS, loss="mae")
    assert mae.constant_loss([[1.0], [2.0], [9.0]], None, None) == pytest.approx(8 / 3)
    focal = SequenceClassification(label_names=NAMES, problem_type="single_label_classification", loss="focal")
    p = torch.tensor([0.25, 0.75])
    assert focal.constant_loss([0, 1, 1, 1], None, None) == pytest.approx(float(-(p * (1 - p) ** 2 * p.log()).sum()))
    tags = TokenClassification(label_names=["O", "B-A"], class_weights={"B-A": 3})
    assert tags.constant_loss([[0, 0, -100], [0, 1]], None, None) == pytest.approx(float(np.log(2)))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            [0.5, 0.4],
            r"row 1 of the train data has probabilities in column 'label' that should sum to 1. Found \[0.5, 0.4\]",
        ),
        ([1.0], "row 1 of the train data should have 2 probabilities in column 'label'.* Fix the row"),
        ([1.5, -0.5], "row 1 of the train data should have 2 probabilities"),
    ],
)
def test_soft_labels_that_are_no_probabilities_name_their_row(cell, message):
    for kind in (SequenceClassification, AudioClassification):
        task = kind(label_names=NAMES, soft_labels=True)
        rows = Dataset.from_list([{"label": [0.5, 0.5]}, {"label": cell}, {"label": None}])
        task = task.reading([rows])
        with pytest.raises(ValueError, match=message):
            task.encode_labels(rows[:], [0, 1, 2], None, [], "train")


def test_soft_labels_are_read_as_probabilities():
    rows = Dataset.from_list([{"label": [0.25, 0.75, 0.0]}, {"label": None}, {"label": [1, 0, 0]}])
    for kind in (SequenceClassification, AudioClassification):
        task = kind(soft_labels=True).resolve(rows, [])
        assert task.label_names == ["LABEL_0", "LABEL_1", "LABEL_2"] and task.unseen(rows) == []
        assert task.encode_labels(rows[:], [0, 1, 2], None, [], "train") == [[0.25, 0.75, 0.0], None, [1.0, 0.0, 0.0]]
        with pytest.raises(ValueError, match="column 'label' contains names, but soft_labels need a list"):
            task.reading([Dataset.from_list([{"label": "a"}])])


def test_choices_have_smoothing():
    assert MultipleChoice(label_smoothing=0.1).to_dict()["label_smoothing"] == 0.1
