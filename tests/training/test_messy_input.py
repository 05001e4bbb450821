"""Rows as messy as users have them are trained, or named before training; nothing crashes in the middle."""

import math

import pytest
from datasets import Dataset
from parameters import few
from tiny import CONFIGS
from transformers import AutoTokenizer, pipeline

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification, TokenClassification

MESSY = [
    "",
    " ",
    "\n\t \u200b\u00a0",
    "\x00",
    "a\x00b \x07\x1b[31m \x7f",
    "😀👩‍👩‍👧‍👦 🇩🇪",
    "שלום עולם مرحبا بالعالم",
    "mixed עברית and 日本語 with\u202e override",
    "e\u0301\u0301\u0301 ﬁ ½ Ⅷ",
    "\ud7ff\ufffd\uffff\U0010ffff",
    "x" * 5000,
    "word " * 3000,
]


@pytest.fixture
def train(backbone_path, arguments, tmp_path):
    def run(tasks, data, family="bert", **kwargs):
        tokenizer = AutoTokenizer.from_pretrained(backbone_path(family))
        model = MultiTaskModel.from_backbone(backbone_path(family), tasks=tasks)
        args = arguments(eval_strategy="epoch", max_steps=-1, num_train_epochs=1, **kwargs)
        trainer = MultiTaskTrainer(model, args, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        return trainer, pipeline("multitask", model=str(tmp_path / "saved"), tokenizer=tokenizer)

    return run


# One of every kind of tokenizer and of structure.
@pytest.mark.parametrize("family", few(CONFIGS, ["bert", "deberta-v2", "longformer", "llama", "gemma3"]))
def test_messy_texts_train_evaluate_and_predict(family, train):
    tasks = {"topic": SequenceClassification(dataset="rows", label_names=["a", "b"])}
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(MESSY)]
    if family != "gemma3":  # which has no native head for tokens
        tasks["tags"] = TokenClassification(dataset="rows", tokens_column="text", tags_column="tags")
        rows = [
            {"text": text.split(" "), "label": number % 2, "tags": ["O"] * len(text.split(" "))}
            for number, text in enumerate(MESSY)
        ]
        rows += [{"text": [], "label": 1, "tags": []}, {"text": ["a"], "label": None, "tags": ["B-X"]}]
    trainer, multitask = train(tasks, {"rows": Dataset.from_list(rows)}, family)
    losses = [value for entry in trainer.state.log_history for key, value in entry.items() if key.endswith("loss")]
    assert losses and all(math.isfinite(loss) for loss in losses)
    for text, answer in zip(MESSY, multitask(MESSY, batch_size=3)):
        assert answer["topic"]["label"] in ("a", "b") and 0 <= answer["topic"]["score"] <= 1
        for span in answer.get("tags", []):
            assert text[span["start"] : span["end"]] == span["word"] and span["word"].strip()


def rows(**columns):
    good = {"text": "a fine place", "label": 0.5, "pair": "b", "names": ["x"], "tokens": ["a"], "tags": ["O"]}
    return Dataset.from_list([good, good, {**good, **columns}])


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        (
            SequenceClassification(),
            {"text": None},
            r"Task 't': row 2 of the train data, column 'text': .*words, not None",
        ),
        (
            SequenceClassification(text_pair_column="pair"),
            {"pair": None},
            r"Task 't': row 2 of the train data, column 'pair': .*words, not None",
        ),
        (
            TokenClassification(tags_column="tags", label_names=["O", "B-X"]),
            {"tokens": ["a", None], "tags": ["O", "O"]},
            r"Task 't': row 2 of the train data, column 'tokens'",
        ),
        (
            TokenClassification(tags_column="tags", label_names=["O", "B-X"]),
            {"tokens": None},
            r"Task 't': row 2 of the train data, column 'tokens'",
        ),
        (
            TokenClassification(tags_column="tags", label_names=["O", "B-X"]),
            {"tokens": ["a", "b"], "tags": ["O", None]},
            r"Task 't': row 2 of the train data has the label None in column 'tags'",
        ),
        (
            SequenceClassification(max_length=2),
            {},
            r"Task 't': `max_length` leaves no token for the text in addition to 2 special tokens. Found `max_length = 2`",
        ),
        (
            SequenceClassification(),
            {"label": math.nan},
            r"Task 't': row 2 of the train data .*finite number.* Found nan",
        ),
        (
            SequenceClassification(),
            {"label": math.inf},
            r"Task 't': row 2 of the train data .*finite number.* Found inf",
        ),
        (
            SequenceClassification(label_column="names", label_names=["x", "y"]),
            {"names": ["x", "z"]},
            r"Task 't': row 2 of the train data has the label 'z' in column 'names', which is not in label_names \(x, y\)",
        ),
        (
            SequenceClassification(label_column="names", label_names=["x", "y"]),
            {"names": ["x", None]},
            r"Task 't': row 2 of the train data has the label None in column 'names'",
        ),
    ],
)
def test_unusable_rows_are_named_before_training(task, columns, message, train):
    with pytest.raises(ValueError, match=message):
        train({"t": task}, {"t": rows(**columns)})


def test_rows_without_a_label_train_nothing_and_break_nothing(train):
    good = {"text": "a fine place", "label": 0, "tokens": ["a"], "tags": ["O"]}
    bare = {"text": "no label at all", "label": None, "tokens": [], "tags": None}
    data = {"rows": Dataset.from_list([good, {**good, "label": 1, "tags": ["B-X"]}, *[bare] * 20])}
    tasks = {
        "topic": SequenceClassification(dataset="rows", label_names=["a", "b"]),
        "tags": TokenClassification(dataset="rows", tags_column="tags"),
    }
    trainer, _ = train(tasks, data, per_device_train_batch_size=2)
    assert trainer.state.global_step == 22 and trainer.progress.seen == {"topic": 22, "tags": 22}


def test_numbers_of_classes_that_are_floats_as_some_are_missing(train, caplog):
    data = {"t": Dataset.from_dict({"text": ["a", "b", "c"], "label": [0.0, 1.0, None]})}
    trainer, _ = train({"t": SequenceClassification(problem_type="single_label_classification")}, data)
    assert trainer.tasks["t"].label_names == ["LABEL_0", "LABEL_1"] and trainer.progress.rows == {"t": 2}
    assert "regression" not in caplog.text
    trainer, _ = train({"t": SequenceClassification()}, data)
    assert (
        trainer.tasks["t"].problem_type == "regression"
        and "contains floats, so the task is a regression" in caplog.text
    )
    half = {"t": Dataset.from_dict({"text": ["a", "b"], "label": [0.5, 1.0]})}
    with pytest.raises(
        ValueError, match="column 'label' contains floats, but single_label_classification needs one name"
    ):
        train({"t": SequenceClassification(problem_type="single_label_classification")}, half)


def test_a_task_whose_rows_are_all_filtered_away_is_named(train):
    data = rows().filter(lambda row: row["text"] == "", keep_in_memory=True)
    with pytest.raises(ValueError, match=r"Task 't': the train data of dataset 't' are empty. Add rows."):
        train({"t": SequenceClassification()}, {"t": data})
    data = Dataset.from_list([{"text": "a", "label": None}] * 3)
    with pytest.raises(ValueError, match=r"Task 't' has no training data: no row of 't' has its label. Add some."):
        train({"t": SequenceClassification(label_names=["a", "b"])}, {"t": data})


def test_two_tasks_on_columns_that_do_not_exist_are_named(train):
    tasks = {
        "one": SequenceClassification(dataset="rows", text_column="txt", label_names=["a", "b"]),
        "two": TokenClassification(dataset="rows", tokens_column="tokns", label_names=["O"]),
    }
    with pytest.raises(ValueError, match=r"Task 'one': the train data has no column 'txt'.* Did you mean 'text'?"):
        train(tasks, {"rows": rows()})
    with pytest.raises(ValueError, match=r"Task 'two': the train data has no column 'tokns'.* Did you mean 'tokens'?"):
        train({"two": tasks["two"]}, {"rows": rows()})
