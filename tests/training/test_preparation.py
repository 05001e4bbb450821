"""What is said of the labels of a split when it is encoded: rows without one, labels that the task does not know."""

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification, TokenClassification

SETS = {"problem_type": "multi_label_classification"}


@pytest.fixture
def trainer(backbone_path, arguments):
    def make(tasks, **data):
        tokenizer = AutoTokenizer.from_pretrained(backbone_path())
        model = MultiTaskModel.from_backbone(backbone_path(), tasks=tasks)
        return MultiTaskTrainer(model, arguments(max_steps=1), processing_class=tokenizer, **data)

    return make


def rows(**columns):
    return Dataset.from_dict({"text": ["good"] * len(next(iter(columns.values()))), **columns})


def test_rows_without_labels_are_counted_by_task_and_split_and_shown_in_the_plan(trainer, caplog):
    tasks = {
        "topic": SequenceClassification(dataset="d", label_column="topic"),
        "mood": SequenceClassification(dataset="d", label_column="mood"),
        "price": SequenceClassification(label_column="price"),
    }
    train = rows(topic=["a", None, "b", None], mood=["x", "y", "z", "x"])
    own = trainer(
        tasks,
        train_dataset={"d": train, "price": rows(price=[1.5, None])},
        eval_dataset={"d": train.select([0, 1]), "price": rows(price=[1.5])},
    )
    assert [text for record in caplog.records if (text := record.getMessage()).startswith("Task")] == [
        "Task 'topic': 2 of 4 rows of the train data have no label.",
        "Task 'price': 1 of 2 rows of the train data have no label.",
        "Task 'topic': 1 of 2 rows of the evaluation data have no label.",
    ]
    assert own.plan.describe(6).splitlines() == [
        "Plan: 6 steps of 8 rows",
        "task   dataset  rows  labelled  classes  share  passes",
        "topic        d     4         2        2  66.7%    6.00",
        "mood         d     4         4        3  66.7%    6.00",
        "price    price     2         1        -  33.3%    6.00",
        "Tasks that read the same dataset share its rows.",
    ]


@pytest.mark.parametrize(
    ("task", "known", "half", "unknown", "value"),
    [
        (SequenceClassification(label_names=["a", "b"]), ["a"], ["a", "B"], ["A", "B"], "A, B"),
        (SequenceClassification(label_names=["a", "b"]), [1], [1, 3], [2, 3], "2, 3"),
        (SequenceClassification(label_names=["a", "b"], **SETS), [["a"]], [["a", "B"]], [["B"], []], "B"),
        (
            SequenceClassification(label_names=["a", "b"], label_separator=","),
            ["a"],
            ["a,B"],
            ["B,A", None],
            "A, B",
        ),
        (
            TokenClassification(label_names=["O", "B-A"], tokens_column="words", tags_column="label"),
            [["O", "B-A"]],
            [["B-A", "B-B"]],
            [["O", "B-B"]],
            "B-B",
        ),
    ],
)
def test_evaluation_without_a_known_label_says_so(task, known, half, unknown, value, trainer, caplog):
    def split(labels):
        return {"t": rows(label=labels, words=[["good", "day"]] * len(labels))}

    own = trainer({"t": task}, eval_dataset=split(known))
    own.evaluate()
    assert "Task" not in caplog.text
    own.evaluate(split(half))
    assert "are none of label_names and count as wrong" in caplog.text and "no label of" not in caplog.text
    own.evaluate(split(unknown))
    assert (
        "Task 't': no label of the eval data is known, so none of its answers can be right. Column 'label' holds "
        f"{value}, and label_names are {', '.join(task.label_names)}."
    ) in caplog.text
