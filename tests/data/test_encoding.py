import pytest
from datasets import ClassLabel, Dataset, Features, List, Value, load_dataset
from transformers import AutoTokenizer

from hf_multitask.data import encode_dataset, group_tasks
from hf_multitask.tasks import build_task

SEQUENCE, TOKEN = "sequence-classification", "token-classification"


@pytest.fixture
def encode(backbone_path):
    def make(rows, *tasks, family="bert", split="train", training=True, features=None):
        from transformers import AutoConfig

        dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows, features=features)
        return encode_dataset(
            "data",
            dataset,
            [task.resolve(dataset, []) for task in tasks],
            tokenizer=AutoTokenizer.from_pretrained(backbone_path(family)),
            config=AutoConfig.from_pretrained(backbone_path(family)),
            split=split,
            training=training,
        )

    return make


def test_types_of_columns_are_known_where_the_first_rows_have_no_value(encode):
    """The library takes a column's type from the first thousand rows."""
    late = 1001
    rows = [
        {
            "text": "x y",
            "label": "a" if row >= late else None,
            "spans": [{"start": 0, "end": 1, "label": "P"}] * (row >= late),
        }
        for row in range(late + 2)
    ]
    found = encode(rows, build_task("mood", {"type": SEQUENCE, "label_names": ["a", "b"]}))
    assert found.rows["labels:mood"][late - 1 :] == [None, 0, 0]
    spans = {"type": TOKEN, "text_column": "text", "spans_column": "spans", "label_names": ["O", "B-P", "I-P"]}
    found = encode(rows, build_task("ner", spans), training=False)
    assert [len(gold["spans"]) for gold in found.rows["gold:ner"][late - 1 :]] == [0, 1, 1]


WORDS = ["John", "lives", "in", "Fort", "Lauderdale", ",", "Florida"]
TAGS = ["B-PER", "O", "O", "B-LOC", "I-LOC", "O", "B-LOC"]


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("every_token", [False, True])
def test_word_tags_land_on_the_tokens_of_their_words(family, every_token, encode, backbone_path):
    task = build_task("ner", {"type": TOKEN, "label_all_tokens": every_token, "label_names": sorted({*TAGS, "I-PER"})})
    row = encode([{"tokens": WORDS, "ner_tags": TAGS}], task, family=family).rows[0]
    tokenizer = AutoTokenizer.from_pretrained(backbone_path(family))
    encoding = tokenizer(" ".join(WORDS), return_offsets_mapping=True)
    assert row["input_ids"] == encoding["input_ids"]
    text, word_of_character = " ".join(WORDS), [place for place, word in enumerate(WORDS) for _ in word + " "]
    seen: set[int] = set()
    for token, (start, end) in enumerate(encoding["offset_mapping"]):
        label = row["labels:ner"][token]
        start += len(text[start:end]) - len(text[start:end].lstrip())
        if start >= end:
            assert label == -100
            continue
        word = word_of_character[start]
        expected = TAGS[word]
        if word in seen:
            expected = expected.replace("B-", "I-") if every_token else None
        assert (None if label == -100 else task.label_names[label]) == expected
        seen.add(word)
    assert seen == set(range(len(WORDS)))


def test_alignment_is_that_of_the_transformers_examples(encode, backbone_path):
    task = build_task("ner", {"type": TOKEN})
    encoded = encode([{"tokens": WORDS, "ner_tags": TAGS}], task).rows[0]
    encoding = AutoTokenizer.from_pretrained(backbone_path())(WORDS, is_split_into_words=True)
    assert encoded["input_ids"] == encoding["input_ids"]
    names, previous = sorted(set(TAGS)), None
    for label, word in zip(encoded["labels:ner"], encoding.word_ids(), strict=True):
        assert label == (-100 if word is None or word == previous else names.index(TAGS[word]))
        previous = word


@pytest.mark.parametrize(
    ("labels", "features"),
    [
        (["neg", "pos", "neg"], None),
        ([0, 1, 0], None),
        ([1, 0, 1], Features({"text": Value("string"), "label": ClassLabel(names=["pos", "neg"])})),
    ],
)
def test_labels_come_as_names_numbers_or_class_labels(labels, features, encode):
    task = build_task("s", {"type": SEQUENCE, "label_names": ["neg", "pos"]})
    rows = [{"text": "x", "label": label} for label in labels]
    assert encode(rows, task, features=features).rows["labels:s"] == [0, 1, 0]


def test_class_label_tags_keep_their_names(encode):
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-X"]))})
    task = build_task("ner", {"type": TOKEN, "label_names": ["B-X", "O"]})
    row = encode([{"tokens": ["a", "b"], "ner_tags": [0, 1]}], task, features=features).rows[0]
    assert [label for label in row["labels:ner"] if label != -100] == [1, 0]


def test_label_sets_and_numbers(encode):
    rows = [{"text": "x", "label": ["joy", "fear"]}, {"text": "y", "label": []}, {"text": "z", "label": None}]
    rows.append({"text": "w", "label": ["joy", "joy"]})
    assert encode(rows, build_task("s", {"type": SEQUENCE})).rows["labels:s"] == [
        [1.0, 1.0],
        [0.0, 0.0],
        None,
        [0.0, 1.0],
    ]
    hot = build_task("s", {"type": SEQUENCE, "label_names": ["a", "b"]})
    assert encode([{"text": "x", "label": [0.0, 1.0]}], hot).rows["labels:s"] == [[0.0, 1.0]]
    assert encode([{"text": "x", "label": 2.5}], build_task("s", {"type": SEQUENCE})).rows["labels:s"] == [[2.5]]


def test_one_row_feeds_several_tasks_and_a_missing_label_is_none(encode):
    tasks = {
        "intent": build_task(
            "intent", {"type": SEQUENCE, "dataset": "atis", "text_column": "tokens", "label_column": "intent"}
        ),
        "slots": build_task("slots", {"type": TOKEN, "dataset": "atis", "tags_column": "slots"}),
    }
    groups = group_tasks(tasks)
    assert list(groups) == ["atis"]
    rows = [
        {"tokens": ["to", "Oslo"], "intent": "go", "slots": ["O", "B-city"]},
        {"tokens": ["home"], "intent": None, "slots": ["O"]},
        {"tokens": ["stop"], "intent": "halt", "slots": None},
    ]
    encoded = encode(rows, *groups["atis"])
    assert encoded.tasks == ["intent", "slots"]
    assert encoded.rows["labels:intent"] == [0, None, 1]
    assert encoded.rows["labels:slots"][2] is None
    assert len(encoded.labelled("intent")) == 2


def test_unseen_labels_are_numbered_after_the_known_ones_in_evaluation(encode):
    rows = [{"text": "x", "label": "pos"}, {"text": "y", "label": "odd"}]
    task = build_task("s", {"type": SEQUENCE, "label_names": ["neg", "pos"]})
    encoded = encode(rows, task, training=False, split="evaluation")
    assert encoded.rows["labels:s"] == [1, 2]
    assert encoded.unseen == {"s": ["odd"]}
    strict = build_task("s", {"type": SEQUENCE, "label_names": ["neg", "pos"], "unseen_labels": "error"})
    with pytest.raises(ValueError, match=r"row 1 of the evaluation data has the label 'odd'"):
        encode(rows, strict, training=False, split="evaluation")


def test_long_rows_are_cut_and_counted(encode):
    rows = [{"text": "good " * 300, "label": "a"}, {"text": "bad", "label": "b"}]
    encoded = encode(rows, build_task("s", {"type": SEQUENCE}))
    assert encoded.cut_rows() == 1
    assert len(encoded.rows[0]["input_ids"]) == 78
    short = build_task("s", {"type": SEQUENCE, "max_length": 16})
    assert len(encode(rows, short).rows[0]["input_ids"]) == 16


def test_features_are_cached_under_all_they_depend_on(encode, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "good", "label": "a"}\n{"text": "bad", "label": "b"}\n')
    dataset = load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    task = build_task("s", {"type": SEQUENCE})
    first = encode(dataset, task).rows
    assert first.cache_files
    assert encode(dataset, task).rows.cache_files == first.cache_files
    assert encode(dataset, build_task("s", {"type": SEQUENCE, "max_length": 8})).rows.cache_files != first.cache_files
    assert encode(dataset, task, family="roberta").rows.cache_files != first.cache_files


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        (
            [{"text": 3, "label": "a"}, {"text": 4, "label": "b"}],
            {"type": SEQUENCE},
            "row 0 of the train data, column 'text'",
        ),
        (
            [{"text": "x", "label": "c"}],
            {"type": SEQUENCE, "label_names": ["a", "b"]},
            "row 0 of the train data has the label 'c'",
        ),
        (
            [{"text": "x", "label": 2}],
            {"type": SEQUENCE, "label_names": ["a", "b"]},
            "has the label 2 in column 'label'",
        ),
        (
            [{"text": "x", "label": 1.5}],
            {"type": SEQUENCE, "label_names": ["a", "b"], "problem_type": "single_label_classification"},
            "column 'label' contains floats, but single_label_classification needs one name or whole number per row",
        ),
        ([{"text": "x", "label": "a"}], {"type": SEQUENCE}, "has 1 different label"),
        (
            [{"text": "x", "label": float("inf")}],
            {"type": SEQUENCE},
            "row 0 of the train data should have 1 finite number",
        ),
        (
            [{"text": "x", "label": [0, 1, 0]}, {"text": "x", "label": [1]}],
            {"type": SEQUENCE},
            "contains the number 0 twice in column 'label'. Use indices of the labels, or vectors",
        ),
        (
            [{"tokens": ["a"], "ner_tags": ["O", "B-X"]}],
            {"type": TOKEN},
            "row 0 of the train data has 1 words .* and 2 tags",
        ),
        (
            [{"tokens": "a b", "ner_tags": ["O", "B-X"]}],
            {"type": TOKEN},
            "column 'tokens' contains names, but a list of words",
        ),
        (
            [{"tokens": ["a"], "ner_tags": ["X"]}],
            {"type": TOKEN, "label_names": ["O", "B-X"]},
            "has the label 'X' .* Did you mean|has the label 'X'",
        ),
        ([{"text": "x", "label": -1}, {"text": "x", "label": 1}], {"type": SEQUENCE}, "contains negative numbers"),
    ],
)
def test_unusable_rows_are_named(rows, task, message, encode):
    with pytest.raises(ValueError, match=f"Task 't': .*{message}"):
        encode(rows, build_task("t", task))


def test_format_of_a_dataset_does_not_matter(encode):
    rows = Dataset.from_list([{"text": "x", "label": 0}, {"text": "y", "label": 1}]).with_format("torch")
    assert encode(rows, build_task("s", {"type": SEQUENCE})).rows["labels:s"] == [0, 1]
