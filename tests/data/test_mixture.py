import pytest
import torch

from hf_multitask.data import Encoded, Mixture, MixtureCollator, StepCollator
from hf_multitask.data.forwards import Forwards
from hf_multitask.tasks import build_task


@pytest.fixture
def parts(tokenizer):
    from datasets import Dataset

    tasks = {
        "s": build_task(
            "s",
            {
                "type": "sequence-classification",
                "label_names": ["a", "b"],
                "problem_type": "single_label_classification",
            },
        ),
        "t": build_task("t", {"type": "token-classification", "label_names": ["O", "B-X"]}),
    }
    texts = Dataset.from_list(
        [{"input_ids": [2, 9, 3], "attention_mask": [1] * 3, "cut": False, "labels:s": n % 2} for n in range(4)]
    )
    words = Dataset.from_list(
        [{"input_ids": [2, 9, 9, 9, 3], "attention_mask": [1] * 5, "cut": False, "labels:t": [-100, 0, 1, 0, -100]}]
    )
    return Mixture([Encoded("s", texts, {"s": []}), Encoded("t", words, {"t": []})]), MixtureCollator(tokenizer, tasks)


def test_batch_says_which_rows_are_whose(parts):
    mixture, collator = parts
    assert mixture.sizes == {"s": 4, "t": 1} and len(mixture) == 5
    batch = collator([mixture[row] for row in (4, 1, 2)])
    assert batch["input_ids"].shape == (3, 5)
    assert {name: rows.tolist() for name, rows in batch["task_rows"].items()} == {"s": [1, 2], "t": [0]}
    assert batch["labels"]["s"].tolist() == [1, 0]
    assert batch["labels"]["t"].tolist() == [[-100, 0, 1, 0, -100]]


def test_rows_that_are_fetched_at_once_are_those_fetched_one_by_one(parts):
    mixture, _ = parts
    rows = [4, 1, ~3, 1, ~4, 0]
    assert mixture.__getitems__(rows) == [mixture[row] for row in rows]


def test_filler_has_inputs_and_no_labels(parts):
    mixture, collator = parts
    batch = collator([mixture[~4]])
    assert batch["input_ids"].tolist() == [[2, 9, 9, 9, 3]]
    assert batch["task_rows"] == batch["labels"] == {}


def test_labels_are_padded_behind_as_the_inputs(parts, tokenizer):
    mixture, collator = parts
    tokenizer.padding_side = "left"
    longer = {"inputs": {"input_ids": [2] * 7, "attention_mask": [1] * 7}, "labels": {}}
    batch = collator([mixture[4], longer])
    assert batch["labels"]["t"].tolist() == [[-100, 0, 1, 0, -100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0], [1] * 7]


def test_without_a_cost_of_a_forward_rows_stay_together(parts):
    mixture, collator = parts
    (batch,) = StepCollator(collator, Forwards(None))([mixture[row] for row in range(5)])["forwards"]
    assert list(batch["input_ids"].shape) == [5, 5]


def test_forwards_hold_all_rows(parts):
    mixture, collator = parts
    forwards = StepCollator(collator, Forwards(1))([mixture[row] for row in range(5)])["forwards"]
    assert [list(batch["input_ids"].shape) for batch in forwards] == [[4, 3], [1, 5]]
    assert torch.equal(forwards[0]["labels"]["s"], torch.tensor([0, 1, 0, 1]))
