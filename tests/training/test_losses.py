"""Options of losses through a training: data, plan, evaluation, saving, and what a step costs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparing import Operations
from datasets import Dataset
from layouts import relative_difference
from mixtures import as_stream
from sklearn.utils.class_weight import compute_class_weight
from tiny import NER_LABELS, read_rows

from hf_multitask import (
    MultipleChoice,
    MultiTaskModel,
    MultiTaskTrainer,
    SequenceClassification,
    TextGeneration,
    TokenClassification,
)
from hf_multitask.training.runtime import TrainerRuntime

NAMES = ["negative", "positive"]
OPTIONS = {"class_weights": "balanced", "label_smoothing": 0.1, "weight_column": "weight"}


def rows_of(count=12, split="train", **columns):
    rows = [
        row | {"weight": [0.5, 2.0, 1.0][place % 3]} for place, row in enumerate(read_rows("sentiment", split, count))
    ]
    return Dataset.from_list(
        [row | {name: values[place] for name, values in columns.items()} for place, row in enumerate(rows)]
    )


@pytest.fixture
def build(backbone_path, arguments, tokenizer):
    def make(task, train, evaluation=None, model=None, tasks=None, **kwargs):
        torch.manual_seed(1)
        if model is None:
            model = MultiTaskModel.from_backbone(backbone_path(), tasks={"t": task}, dropout=0.0).double()
        return MultiTaskTrainer(
            model,
            arguments(max_steps=2, gradient_logging_steps=0, **kwargs),
            train_dataset=None if train is None else {"t": train},
            eval_dataset=None if evaluation is None else {"t": evaluation},
            processing_class=tokenizer,
            tasks=tasks,
        )

    return make


def test_balanced_weights_are_computed_once_printed_saved_and_need_no_data_afterwards(build, tmp_path, capsys):
    rows = rows_of(20)
    trainer = build(SequenceClassification(label_names=NAMES, **OPTIONS), rows, rows_of(9, "validation"))
    expected = compute_class_weight("balanced", classes=np.array(NAMES), y=rows["label"]).tolist()
    assert trainer.model.config.task("t")["class_weights"] == pytest.approx(dict(zip(NAMES, expected, strict=True)))
    trainer.train()
    shown = ", ".join(f"{name} {weight:.4g}" for name, weight in zip(NAMES, expected, strict=True))
    assert f"\nClass weights of t: {shown}\n" in capsys.readouterr().out
    found = trainer.evaluate()
    trainer.save_model(str(tmp_path / "saved"))
    saved = MultiTaskModel.from_pretrained(tmp_path / "saved")
    assert saved.config.task("t") == trainer.model.config.task("t")
    for tasks in (
        None,
        {"t": SequenceClassification(**OPTIONS)},
        {"t": SequenceClassification(weight_column="weight")},
    ):
        again = build(None, None, rows_of(9, "validation"), model=saved, tasks=tasks)
        assert again.evaluate()["eval_t_loss"] == found["eval_t_loss"]
        assert again.tasks["t"].class_weights == trainer.tasks["t"].class_weights


def test_balanced_weights_count_the_rows_that_train_in_every_form_of_labels(build):
    rows = rows_of(20)
    few = build(SequenceClassification(label_names=NAMES, class_weights="balanced"), rows, max_train_samples=7)
    counts = [few.train_dataset.datasets[0].rows["labels:t"].count(number) for number in (0, 1)]
    assert list(few.tasks["t"].class_weights.values()) == pytest.approx([7 / 2 / count for count in counts])
    wiki = Dataset.from_list(read_rows("ner", "train", 8))
    tags = build(TokenClassification(label_names=NER_LABELS, class_weights="balanced"), wiki)
    found = [tag for row in wiki["ner_tags"] for tag in row]
    weights = compute_class_weight("balanced", classes=np.array(present := sorted(set(found))), y=found)
    assert [tags.tasks["t"].class_weights[tag] for tag in present] == pytest.approx(weights.tolist())
    sets = rows_of(4, label=[["a"], ["a", "b"], ["a"], []])
    several = build(SequenceClassification(label_names=["a", "b"], class_weights="balanced", label_format="set"), sets)
    assert several.tasks["t"].class_weights == pytest.approx({"a": 1 / 3, "b": 3.0})
    soft = rows_of(4, label=[[0.5, 0.5], [1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    one = build(SequenceClassification(label_names=["a", "b"], class_weights="balanced", soft_labels=True), soft)
    assert one.tasks["t"].class_weights == pytest.approx({"a": 4 / 2 / 3, "b": 4 / 2 / 1})


def test_the_evaluation_has_the_loss_of_the_training(build):
    task = SequenceClassification(
        label_names=NAMES, class_weights={"positive": 3}, label_smoothing=0.2, weight_column="weight"
    )
    validation = rows_of(9, "validation")
    trainer = build(task, rows_of(), validation)
    logits = torch.tensor(trainer.predict({"t": validation})["t"].predictions)
    labels, rows = (
        torch.tensor([NAMES.index(label) for label in validation["label"]]),
        torch.tensor(validation["weight"]),
    )
    classes = torch.tensor([1.0, 3.0], dtype=logits.dtype)
    losses = F.cross_entropy(logits, labels, classes, reduction="none", label_smoothing=0.2)
    expected = (losses * rows).sum() / (classes[labels] * rows).sum()
    assert trainer.evaluate()["eval_t_loss"] == pytest.approx(float(expected), rel=1e-6)


def test_soft_labels_train_and_their_metrics_are_those_of_the_most_probable_class(build):
    soft = rows_of(8, label=[[0.9, 0.1], [0.2, 0.8]] * 4)
    trainer = build(SequenceClassification(soft_labels=True, loss="focal"), soft, soft)
    assert trainer.model.config.task("t")["label_names"] == ["LABEL_0", "LABEL_1"]
    trainer.train()
    result = trainer.predict({"t": soft})["t"]
    hits = result.predictions.argmax(-1) == [0, 1] * 4
    assert result.metrics["test_t_accuracy"] == pytest.approx(hits.mean())
    assert trainer.evaluate()["eval_t_loss"] > 0


def test_rows_of_weight_0_change_nothing(build):
    weights = [1.0, 0.0, 2.0, 0.0, 0.5, 1.0]
    rows = rows_of(6, weight=weights)
    task = SequenceClassification(label_names=NAMES, weight_column="weight")
    others = [
        "negative" if label == "positive" and not weight else label
        for label, weight in zip(rows["label"], weights, strict=True)
    ]
    states = []
    for labels in (
        rows["label"],
        [label if weight else "negative" for label, weight in zip(rows["label"], weights, strict=True)],
        others,
    ):
        trainer = build(task, rows_of(6, weight=weights, label=labels), per_device_train_batch_size=6)
        trainer.train()
        states.append(trainer.model.state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[name], value) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            [1.0, -2.0, 1.0],
            "row 1 of the train data, column 'weight': a weight should be a number, 0 or more. Found -2.0",
        ),
        (
            [1.0, 1.0, None],
            "row 2 of the train data, column 'weight': a weight should be a number, 0 or more. Found None",
        ),
        ([1.0, float("nan"), 1.0], "row 1 of the train data, .* Found nan"),
        (["a", "b", "c"], "row 0 of the train data, .* Found 'a'"),
        ([0.0, 0.0, 0.0], "column 'weight' is 0 in every row of the train data with its label"),
    ],
)
def test_weights_that_are_not_usable_name_their_row(column, message, build):
    with pytest.raises(ValueError, match=f"Task 't': {message}"):
        build(SequenceClassification(label_names=NAMES, weight_column="weight"), rows_of(3, weight=column))


def test_what_cannot_be_read_from_the_data_is_an_error(build):
    weighted, balanced = {"weight_column": "wieght"}, {"class_weights": "balanced"}
    with pytest.raises(ValueError, match=r"the train data has no column 'wieght'.* Did you mean 'weight'"):
        build(SequenceClassification(label_names=NAMES, **weighted), rows_of(3))
    with pytest.raises(ValueError, match=r"dataset 't' is a stream. .*Give a weight for each label"):
        build(SequenceClassification(label_names=NAMES, **balanced), rows_of(3).to_iterable_dataset())
    with pytest.raises(ValueError, match=r"counts the labels of training rows, and there are none.* Add 't'"):
        build(SequenceClassification(label_names=NAMES, **balanced), None, rows_of(3))


def test_rows_without_a_label_need_no_weight_and_streams_have_weights(build):
    rows = rows_of(4, label=["negative", None, "positive", "positive"], weight=[1.0, None, 0.5, 2.0])
    task = SequenceClassification(label_names=NAMES, weight_column="weight")
    whole, stream = (build(task, data, per_device_train_batch_size=4) for data in (rows, as_stream(rows)))
    whole.train()
    stream.train()
    assert relative_difference(whole.model.state_dict(), stream.model.state_dict()) < 1e-9


def test_the_arguments_of_the_trainer_say_where_the_options_are(build, arguments, tokenizer, build_model, data):
    with pytest.raises(ValueError, match="set `label_smoothing` in the tasks that are to have it"):
        arguments(label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match=r"`compute_loss_func` is not supported.* Set `loss`, `class_weights`"):
        MultiTaskTrainer(
            build_model(), arguments(), train_dataset=data(), processing_class=tokenizer, compute_loss_func=lambda *_: 0
        )


def test_other_losses_do_not_tokenize_again(build):
    first = build(SequenceClassification(label_names=NAMES), rows := rows_of(6))
    other = build(SequenceClassification(label_names=NAMES, loss="focal", class_weights={"positive": 2}), rows)
    weighted = build(SequenceClassification(label_names=NAMES, weight_column="weight"), rows)
    prints = [one.train_dataset.datasets[0].rows._fingerprint for one in (first, other, weighted)]
    assert prints[0] == prints[1] != prints[2]


def operations(build, task, rows):
    trainer = build(task, rows, per_device_train_batch_size=4)
    trainer.model.float()
    trainer.create_optimizer_and_scheduler(2)
    trainer.model.train()
    batches = [next(iter(trainer.get_train_dataloader()))]
    assert isinstance(trainer.runtime, TrainerRuntime)
    items = trainer.engine.open(batches)
    counted = Operations()
    with counted:
        items = trainer.engine.open(batches)
        loss, _ = trainer.engine.loss(trainer.model, dict(batches[0]["forwards"][0]), items)
        loss.backward()
    return counted.count


CHOICES = [
    {"question": "It is", "choices": ["a", "b", "c"][: 2 + row % 2], "label": row % 2, "weight": 0.5}
    for row in range(8)
]
KINDS = {
    "classes": (lambda **options: SequenceClassification(label_names=NAMES, **options), rows_of),
    "tags": (
        lambda **options: TokenClassification(label_names=NER_LABELS, **options),
        lambda: Dataset.from_list([row | {"weight": 2.0} for row in read_rows("ner", "train", 8)]),
    ),
    "choices": (MultipleChoice, lambda: Dataset.from_list(CHOICES)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_option_costs_few_operations(kind, build, record_property):
    make, rows = KINDS[kind]
    plain = operations(build, make(), rows())
    names = ["label_smoothing", "weight_column"] if kind == "choices" else list(OPTIONS)
    for name in names:
        more = operations(build, make(**{name: OPTIONS[name]}), rows()) - plain
        record_property(f"operations more with {name}", more)
        assert more <= (12 if kind == "choices" and name == "label_smoothing" else 10)  # of choices that may be missing
    every = operations(build, make(**{name: OPTIONS[name] for name in names}), rows()) - plain
    record_property("operations more with all of them", every)


def test_a_language_model_has_no_weights_of_rows():
    with pytest.raises(ValueError, match="whose items are the tokens of all texts"):
        TextGeneration(weight_column="weight")
