"""Dependencies in the data: what is read, what is refused, and how answers are measured."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, List, Value

from hf_multitask import DependencyParsing
from hf_multitask.data import encode_dataset
from hf_multitask.tasks import build_task
from hf_multitask.tasks.sentences import heads_of

GOOD = {"tokens": ["Ada", "met", "him"], "head": [2, 0, 2], "deprel": ["nsubj", "root", "obj"]}
NAMES = ["root", "nsubj", "nsubj:pass", "obj"]


@pytest.fixture
def encode(build_model, tokenizer):
    def run(rows, training=True, **kwargs):
        rows = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
        task = build_task("parse", {"type": "dependency-parsing", "label_names": NAMES, **kwargs})
        config = build_model().config.backbone_config
        return task, encode_dataset("rows", rows, [task], tokenizer=tokenizer, config=config, split="train", training=training)  # fmt: skip

    return run


@pytest.mark.parametrize("heads", [[2, 0, 2], ["2", "0", "2"], [2.0, 0.0, 2.0]], ids=str)
def test_words_have_the_place_of_their_token_a_head_and_a_relation(heads, encode):
    task, encoded = encode([{**GOOD, "head": heads}, {**GOOD, "head": None, "deprel": None}])
    labels = encoded.rows["labels:parse"]
    assert [[head, relation] for _, _, head, relation in labels[0]] == [[2, 1], [0, 0], [2, 3]]
    assert labels[1] is None and encoded.total("lost", "parse") == 0
    made = task.collate(labels[:1], 9, "right")
    assert made.shape == (1, 3, 3) and made[0, :, 0].tolist() == [place for _, place, *_ in labels[0]]
    words = [{**GOOD, "tokens": ["Ada", " ", "him"]}]
    task, encoded = encode(words)
    assert encoded.total("lost", "parse") == 1
    assert task.collate(encoded.rows["labels:parse"][:], 9, "right")[0, 1].tolist() == [-1, 0, 0]


def test_a_class_label_is_read_by_name(encode):
    rows = Dataset.from_list([GOOD]).cast_column("deprel", List(ClassLabel(names=["obj", "nsubj", "root"])))
    _, encoded = encode(rows)
    assert [relation for *_, relation in encoded.rows["labels:parse"][0]] == [1, 0, 3]
    resolved = DependencyParsing().resolve(rows, [])
    assert resolved.label_names == ["obj", "nsubj", "root"]
    assert DependencyParsing().resolve(Dataset.from_list([GOOD]), []).label_names == ["nsubj", "obj", "root"]


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([2, 0, 4], r"word 3 \('him'\) has the head 4, but heads are the numbers of the 3 words, counted from 1"),
        ([2, 0, -1], r"word 3 \('him'\) has the head -1"),
        ([2, 0, None], r"word 3 \('him'\) has no head"),
        (["2", "0", "_"], r"word 3 \('him'\) has no head"),
        (["2", "0", "met"], r"the head of word 3 \('him'\) should be the number of a word, or 0. Found 'met'"),
        ([2.5, 0.0, 2.0], r"the head of word 1 \('Ada'\) should be the number of a word, or 0. Found 2.5"),
        ([2, 0, 0], "one word of a sentence should have the head 0, as the root of the tree. Found 2, the words 2, 3"),
        ([2, 3, 1], "one word of a sentence should have the head 0, as the root of the tree. Found none"),
        ([3, 0, 1], "the heads should be a tree, but word 1 is reached again from its own head: words 1, 3, 1"),
        ([1, 0, 2], "the heads should be a tree, but word 1 is reached again from its own head: words 1, 1"),
    ],
    ids=str,
)
def test_heads_that_are_no_tree_are_one_sentence_with_the_row(heads, message, encode):
    with pytest.raises(
        ValueError, match=rf"^Task 'parse': row 1 of the train data, column 'head': {message}.*Fix the row"
    ):
        encode([{**GOOD, "head": [type(heads[0])(head) for head in (2, 0, 2)]}, {**GOOD, "head": heads}])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head": [2, 0]}, "row 1 .* has 3 words in 'tokens' and 2 entries in 'head'. Use one per word"),
        ({"deprel": ["root"]}, "row 1 .* has 3 words in 'tokens' and 1 entries in 'deprel'. Use one per word"),
        ({"head": None}, "row 1 .* has nothing in column 'head' and a list in 'deprel'. Give both, or neither"),
        ({"deprel": None}, "row 1 .* has nothing in column 'deprel' and a list in 'head'. Give both, or neither"),
        ({"deprel": ["nsubj", "root", None]}, r"row 1 .*'deprel': word 3 \('him'\) has no relation. Fix the row"),
        ({"deprel": ["nsubj", "root", "_"]}, r"row 1 .*'deprel': word 3 \('him'\) has no relation. Fix the row"),
        ({"deprel": ["nsubj", "root", "nsbj"]}, "row 1 .* has the label 'nsbj'.* Did you mean 'nsubj'?"),
    ],
    ids=str,
)
def test_rows_that_do_not_fit_are_one_sentence(changed, message, encode):
    with pytest.raises(ValueError, match=f"Task 'parse': {message}"):
        encode([GOOD, {**GOOD, **changed}])


def test_columns_of_another_kind_are_refused():
    rows = Dataset.from_list([{**GOOD, "head": 2}])
    with pytest.raises(
        ValueError, match="column 'head' contains whole numbers, but a list of numbers of words per row"
    ):
        DependencyParsing().resolve(rows, [])
    with pytest.raises(ValueError, match="can have las, uas"):
        DependencyParsing(metrics=["accuracy"])


def test_unknown_relations_are_wrong_in_evaluation(encode):
    rows = [GOOD, {**GOOD, "deprel": ["nsubj", "root", "iobj"]}]
    task, encoded = encode(rows, training=False)
    assert encoded.unseen["parse"] == ["iobj"]
    labels = task.collate(encoded.rows["labels:parse"][:], 9, "right").numpy()[..., 1:]
    told = np.concatenate([labels, np.ones((2, 3, 1))], 2)
    assert task.measure(told, labels, ["iobj"]) == {"las": 1.0, "uas": 1.0}
    told[1, 2, 1] = NAMES.index("obj")
    assert task.measure(told, labels, ["iobj"]) == {"las": 5 / 6, "uas": 1.0}
    with pytest.raises(ValueError, match="has the label 'iobj' in column 'deprel'"):
        encode(rows, training=False, unseen_labels="error")


def test_relations_are_compared_without_subtypes_and_all_words_count():
    task = DependencyParsing(label_names=NAMES)
    true = np.full((2, 4, 2), -100)
    true[0, :3] = [[2, 1], [0, 0], [2, 3]]
    true[1] = [[0, 0], [1, 2], [1, 3], [1, 3]]
    told = np.full((2, 4, 3), -100.0)
    told[0, :3] = [[2, 2, 1], [0, 0, 1], [1, 3, 1]]  # another subtype, right, another head
    told[1] = [[0, 0, 1], [1, 1, 1], [1, 1, 1], [-100, -100, -100]]  # right, subtype, relation, a word without a token
    assert task.measure(told, true, []) == {"las": 4 / 7, "uas": 5 / 7}


def test_placeholders_are_trees():
    task = DependencyParsing(label_names=NAMES)
    for words in ([], ["a"], ["a", "b", "c"]):
        heads, deprels = task.placeholder({"tokens": words})
        assert heads_of(words, heads) == heads and len(deprels) == len(words)


def test_numbers_index_the_names(encode):
    rows = Dataset.from_list([{**GOOD, "deprel": [1, 0, 3]}]).cast_column("head", List(Value("int32")))
    _, encoded = encode(rows)
    assert [relation for *_, relation in encoded.rows["labels:parse"][0]] == [1, 0, 3]


def test_a_sentence_without_words_has_nothing_to_learn(encode):
    task, encoded = encode([GOOD, {"tokens": [], "head": [], "deprel": []}])
    labels = task.collate(encoded.rows["labels:parse"][1:2], 4, "right")
    assert labels.shape == (1, 1, 3) and torch.equal(labels, torch.full((1, 1, 3), -100))
