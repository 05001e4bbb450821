"""How label columns are read: vectors, sets, cells with separators, names that are digits, ClassLabels, ids."""

import datetime
import random

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import AutoConfig, AutoTokenizer

from hf_multitask import MultiTaskModel, MultiTaskTrainer
from hf_multitask.data import encode_dataset
from hf_multitask.tasks import build_task
from hf_multitask.tasks.label_sets import separator_in, split

INT, BOOL, FLOAT, STRING = (Value(kind) for kind in ("int64", "bool", "float64", "string"))
HIDDEN = ["a", "b", "c"]


def column(labels, feature=None):
    features = feature and Features({"text": STRING, "label": feature})
    return Dataset.from_dict({"text": ["Maria left"] * len(labels), "label": labels}, features=features)


@pytest.fixture
def read(backbone_path):
    """The labels of the training data as the model gets them, and the names of the classes."""

    def make(labels, feature=None, others=(), kind="sequence-classification", **arguments):
        path, data = backbone_path(), labels if isinstance(labels, Dataset) else column(labels, feature)
        task = build_task("t", {"type": kind, **arguments}).resolve(data, others)
        tokenizer, config = AutoTokenizer.from_pretrained(path), AutoConfig.from_pretrained(path)
        encoded = encode_dataset("t", data, [task], tokenizer=tokenizer, config=config, split="train", training=True)
        return encoded.rows["labels:t"], getattr(task, "label_names", None)

    return make


@pytest.mark.parametrize("classes", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "feature",
    [List(INT), List(BOOL), List(FLOAT), List(Value("float32")), List(ClassLabel(names=["no", "yes"])), "fixed"],
    ids=str,
)
def test_lists_of_0_and_1_as_long_as_the_names_are_vectors(classes, feature, read):
    draw = random.Random(classes)
    vectors = [[draw.randint(0, 1) for _ in range(classes)] for _ in range(20)]
    names = [f"class {number}" for number in range(classes)]
    feature = List(INT, length=classes) if feature == "fixed" else feature
    found, kept = read([*vectors, None], feature, label_names=names)
    assert found == [*([float(entry) for entry in vector] for vector in vectors), None]
    assert kept == names
    own_names = getattr(getattr(feature, "feature", None), "names", None)
    if own_names is None and classes > 1:
        assert read(vectors, feature) == (found[:-1], [f"LABEL_{number}" for number in range(classes)])
    elif classes == 2:  # the names of the ClassLabel are as many as its vectors are long
        assert read(vectors, feature) == (found[:-1], own_names)


@pytest.mark.parametrize(
    ("labels", "feature", "names", "expected"),
    [
        ([[0], [0, 1], []], List(INT), ["a", "b"], [[1, 0], [1, 1], [0, 0]]),
        ([[0, 1], [1, 0]], List(INT), HIDDEN, [[1, 1, 0], [1, 1, 0]]),
        ([[0, 1], [1, 2]], List(INT), None, [[1, 1, 0], [0, 1, 1]]),
        ([[0], [1]], List(INT), None, [[1, 0], [0, 1]]),
        ([[0, 2], [0, 1]], List(ClassLabel(names=["c", "b", "a"])), HIDDEN, [[1, 0, 1], [0, 1, 1]]),
        ([[0], [0, 1]], List(ClassLabel(names=["1", "0"])), ["0", "1"], [[0, 1], [1, 1]]),
        ([["1", "0"], ["0", "0"]], List(STRING), ["1", "0"], [[1, 1], [0, 1]]),
        ([["1", "0"], ["0", "0"]], List(STRING), None, [[1, 1], [1, 0]]),
    ],
)
def test_other_lists_are_sets(labels, feature, names, expected, read):
    assert read(labels, feature, label_names=names)[0] == expected


def test_a_column_is_read_in_one_way_in_all_of_its_splits(read):
    both = column([[0, 1], [1, 0]])
    assert read(both, label_names=["a", "b"])[0] == [[0, 1], [1, 0]]
    assert read(both, label_names=["a", "b"], others=[column([[0], [1]])])[0] == [[1, 1], [1, 1]]
    assert read(both, label_names=["a", "b"], label_format="set")[0] == [[1, 1], [1, 1]]


def test_the_format_is_kept_for_data_that_come_later(backbone_path, arguments):
    tokenizer = AutoTokenizer.from_pretrained(backbone_path())
    task = build_task("t", {"type": "sequence-classification", "label_names": ["toxic"]})
    model = MultiTaskModel.from_backbone(backbone_path(), tasks={"t": task})
    train = column([[1], [0], [1]] * 4)
    trainer = MultiTaskTrainer(model, arguments(max_steps=1), train_dataset={"t": train}, processing_class=tokenizer)
    assert model.config.task("t")["label_format"] == "vector"
    assert trainer.predict({"t": column([[1], [1]])})["t"].label_ids.tolist() == [[1], [1]]
    # A model of a version that did not keep it reads a column by what it holds.
    model.config.tasks[0].pop("label_format")
    old = MultiTaskTrainer(model, arguments(), processing_class=tokenizer)
    assert old.predict({"t": column([[1.0], [0.0]])})["t"].label_ids.tolist() == [[1], [0]]


@pytest.mark.parametrize(
    ("label", "feature", "names", "expected"),
    [
        (["0", "1"], STRING, ["1", "0"], [1, 0]),
        (["2024", "7"], STRING, ["7", "2024"], [1, 0]),
        (["2024", "7"], STRING, None, [0, 1]),
        ([0, 1], ClassLabel(names=["1", "0"]), ["0", "1"], [1, 0]),
        ([0, 1], ClassLabel(names=["1", "0"]), None, [0, 1]),
        ([0, 1, -1], ClassLabel(names=["10", "2"]), ["2", "10"], [1, 0, None]),
        ([0, 1], INT, ["no", "yes"], [0, 1]),
        ([False, True], BOOL, ["no", "yes"], [0, 1]),
    ],
)
def test_digits_are_names_and_numbers_are_places(label, feature, names, expected, read):
    assert read(label, feature, label_names=names)[0] == expected


def test_numbers_beside_names_that_are_digits_are_places_and_a_warning_says_so(read, caplog):
    assert read([1, 0], INT, label_names=["1", "0"])[0] == [1, 0]
    assert (
        "column 'label' contains numbers, which are indices of label_names, counted from 0; the name '1' has the index 0"
        in (caplog.text)
    )
    with pytest.raises(ValueError, match=r"has the label 3 .* Write the label as text to use its name"):
        read([1, 3], INT, label_names=["1", "2", "3"])
    caplog.clear()
    read([1, 0], ClassLabel(names=["5", "6"]), others=[column([0, 1], INT)])
    assert "the name '5' has the index 0" in caplog.text
    caplog.clear()
    read([1, 0], INT, label_names=["0", "1"])
    assert not caplog.records


def test_names_and_numbers_do_not_go_together(read):
    with pytest.raises(
        ValueError, match=r"'label' contains the number 1 and the name '0'. Use the same kind of labels"
    ):
        read(["0", "1"], others=[column([1, 2])])
    with pytest.raises(ValueError, match="column 'label' contains values that are neither names nor numbers"):
        read([datetime.datetime(2026, 1, 1)])


@pytest.mark.parametrize(
    ("labels", "feature", "arguments", "message"),
    [
        ([[1, 0, 0], [1]], List(FLOAT), {}, r"vectors of different lengths \(1, 3\)"),
        (
            [[1, 0, 0], [1]],
            List(FLOAT),
            {"label_names": HIDDEN},
            r"row 1 .* should have 3 values of 0 or 1 .* Found \[1.0\]",
        ),
        ([[1, 0.5, 0]], List(FLOAT), {"label_names": HIDDEN}, "row 0 .* should have 3 values of 0 or 1"),
        ([[1, 0, 1], [1, 0]], List(INT), {"label_names": HIDDEN}, "the number 1 twice .* each of the 3 label_names"),
        (
            [[1, 0, 1]] * 2,
            List(ClassLabel(names=["0", "1"])),
            {},
            "vectors of 3 classes, or sets of two. Set label_names",
        ),
        ([["1", "0", "1"]], List(STRING), {"label_names": HIDDEN}, "has the label '1' .* not in label_names"),
        (
            [1],
            INT,
            {"label_format": "vectors"},
            "`label_format` should be one of vector, set. .* Did you mean 'vector'",
        ),
        ([1], INT, {"label_separator": ""}, "`label_separator` should be text"),
        (
            ["a"],
            STRING,
            {"label_separator": ";", "problem_type": "regression"},
            "`label_separator` applies to sets of labels",
        ),
        (
            ["a"],
            STRING,
            {"problem_type": "multi_label_classification"},
            "needs a list per row, or text and a label_separator",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(labels, feature, arguments, message, read):
    with pytest.raises(ValueError, match=f"(?s)Task 't': .*{message}"):
        read(labels, feature, **arguments)


@pytest.mark.parametrize(
    ("labels", "feature", "kind", "label_column"),
    [
        ([1_700_000_000_000 + row for row in range(50)], INT, "sequence-classification", "label"),
        ([5_000_000_000.0, None, 0.0], FLOAT, "sequence-classification", "label"),
        ([[0, 2**62], [1]], List(INT), "sequence-classification", "label"),
        ([[0, 2**62]], List(INT), "token-classification", "ner_tags"),
    ],
)
def test_ids_and_times_are_no_classes(labels, feature, kind, label_column):
    """They would need a name each, up to the largest: far more memory than there is."""
    features = Features({"text": STRING, "tokens": List(STRING), label_column: feature})
    data = {"text": ["x y"] * len(labels), "tokens": [["x", "y"]] * len(labels), label_column: labels}
    problem = {"problem_type": "single_label_classification"} if feature is FLOAT else {}
    task = build_task("t", {"type": kind, **problem})
    with pytest.raises(
        ValueError, match=f"'{label_column}' contains whole numbers up to .*, but the training data have"
    ):
        task.resolve(Dataset.from_dict(data, features=features), [])


def test_many_classes_of_more_labels_are_classes(read):
    numbers = [row % 1500 for row in range(1600)]
    assert read(numbers, INT)[0] == numbers
    assert len(read([0, 999], INT)[1]) == 1000


CELLS = ["joy; fear", "fear", " joy ;joy", ";", None, "anger;"]


def test_a_cell_with_separators_is_a_set(read):
    found, names = read(CELLS, label_separator=";")
    assert names == ["anger", "fear", "joy"]
    assert found == [[0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0], None, [1, 0, 0]]
    assert read(["1|0", "", "0", " "], label_separator="|") == ([[1, 1], None, [1, 0], None], ["0", "1"])
    # Where no row has two labels, a file of numbers is read as numbers, with floats where some are missing.
    assert read([2024, None, 7], FLOAT, label_separator=";") == ([[1, 0], None, [0, 1]], ["2024", "7"])
    assert read([2024, 7], INT, label_names=["7", "2024"], label_separator=";")[0] == [[0, 1], [1, 0]]
    combined = ClassLabel(names=["joy;fear", "fear"])
    assert read([0, 1, -1], combined, label_separator=";") == ([[1, 1], [1, 0], None], ["fear", "joy"])
    with pytest.raises(ValueError, match=r"row 0 of the train data has the label 'jo' .* Did you mean 'joy'"):
        read(["fear;jo"], label_names=["joy", "fear"], label_separator=";")


def test_cells_that_look_like_sets_get_a_hint(read, caplog):
    labels = ["joy,fear", "joy", "fear, anger", "anger, joy", "fear"]
    read(labels)
    assert "labels in column 'label' look like sets, separated by ','" in caplog.text
    assert "set label_separator: ','" in caplog.text
    with pytest.raises(ValueError, match=r"has the label 'joy,fear' .* To read it as a set, set label_separator: ','"):
        read(labels, label_names=["joy", "fear", "anger"])


@pytest.mark.parametrize(
    ("labels", "separator"),
    [
        (["a;b", "b;c", "a;c"], ";"),
        (["a|b", "a", "b"], "|"),
        (["x, y", "x", "z, x", "z"], ","),
        (["Yes, please", "No, thanks"], None),
        (["Albany, NY", "Buffalo, NY", "Ithaca, NY"], None),
        (["a", "b"], None),
        ([0, 1], None),
        ([], None),
        (["a,b", *(f"other {number}" for number in range(50)), "a", "b"], None),
    ],
)
def test_what_looks_like_sets(labels, separator):
    assert separator_in(labels) == separator


def test_split_by_hand():
    assert split(" a ; b;", ";") == ["a", "b"] and split(" ", ";") is None and split(";", ";") == []
    assert split("new york  rome", " ") == ["new", "york", "rome"] and split(3.0, ";") == ["3"]


def test_label_sets_in_cells_train_and_are_measured(backbone_path, arguments):
    rows = {"text": ["good", "bad", "good bad"] * 8, "label": ["joy", "fear", "joy|fear"] * 8}
    train, later = Dataset.from_dict(rows), Dataset.from_dict({"text": ["good", "bad"], "label": ["joy|awe", None]})
    model = MultiTaskModel.from_backbone(
        backbone_path(), tasks={"t": build_task("t", {"type": "sequence-classification", "label_separator": "|"})}
    )
    trainer = MultiTaskTrainer(
        model,
        arguments(max_steps=40, learning_rate=1e-2, logging_steps=100),
        train_dataset={"t": train},
        eval_dataset={"t": train.select(range(3))},
        processing_class=AutoTokenizer.from_pretrained(backbone_path()),
    )
    trainer.train()
    assert model.config.task("t")["problem_type"] == "multi_label_classification"
    assert trainer.evaluate()["eval_t_micro_f1"] == 1.0
    assert trainer.evaluate({"t": later})["eval_t_micro_f1"] == pytest.approx(2 / 3)  # one hit, one label missed


@pytest.mark.parametrize("names", [["0", "1", "2", "3"], ["3", "2", "1", "0"], ["A", "B", "C", "D"]])
def test_the_right_choice_may_be_a_class_label(names, read):
    features = {"question": STRING, "choices": List(STRING), "label": ClassLabel(names=names)}
    rows = [
        {"question": "Maria left", "choices": ["Oslo", "Quito", "Rome", "Bonn"], "label": label} for label in (0, 3, -1)
    ]
    assert read(Dataset.from_list(rows, features=Features(features)), kind="multiple-choice")[0] == [0, 3, None]


def test_a_column_may_be_a_choice_and_a_class(backbone_path):
    """One task reads the numbers of a ClassLabel, the other its names."""
    features = {"text": STRING, "label": List(ClassLabel(names=["b", "a"]))}
    data = Dataset.from_list([{"text": "x", "label": label} for label in ([0, 1], [1, 1])], features=Features(features))
    tasks = [
        build_task(name, {"type": "sequence-classification", "label_format": name, "label_names": ["a", "b"]})
        for name in ("vector", "set")
    ]
    tokenizer, config = AutoTokenizer.from_pretrained(backbone_path()), AutoConfig.from_pretrained(backbone_path())
    rows = encode_dataset("t", data, tasks, tokenizer=tokenizer, config=config, split="train", training=True).rows
    assert rows["labels:vector"] == [[0, 1], [1, 1]] and rows["labels:set"] == [[1, 1], [1, 0]]


VALUES = {
    "int64": [0, 1, 2, -1, 5, 10**12],
    "bool": [True, False],
    "float64": [0.0, 1.0, 0.5, 2.0, float("nan")],
    "string": ["a", "b", "0", "1", "a,b", "b ,a", ";", ""],
    "null": [None],
    "ClassLabel": [0, 1, -1],
}


def some_column(draw):
    kind, depth = draw.choice(list(VALUES)), draw.choice([0, 0, 1, 1, 2])

    def value(left):
        if draw.random() < 0.1:
            return None
        return draw.choice(VALUES[kind]) if not left else [value(left - 1) for _ in range(draw.choice([2, 2, 0, 1, 3]))]

    feature = ClassLabel(names=["1", "0"]) if kind == "ClassLabel" else Value(kind)
    for _ in range(depth):
        feature = List(feature)
    return column([value(depth) for _ in range(draw.randint(1, 5))], feature)


def test_any_column_is_read_or_refused_in_a_sentence():
    """Random columns and arguments; what is read can be collated."""
    draw, read = random.Random(0), 0
    arguments = {
        "label_names": [None, None, ["a", "b"], ["1", "0"], ["a", "b", "c"]],
        "label_separator": [None, None, ",", ";"],
        "problem_type": [None, None, "multi_label_classification", "single_label_classification", "regression"],
    }
    for _ in range(120):
        train, later = some_column(draw), some_column(draw)
        given = {name: draw.choice(values) for name, values in arguments.items()}
        try:
            task = build_task("t", {"type": "sequence-classification", **given}).resolve(train, [])
            for data in (train, later):
                task, unseen, rows = task.reading([data]), task.unseen(data), data[:]
                names = getattr(data.features["label"], "names", None)
                if names and not task.reads_numbers:
                    rows["label"] = [None if label in (None, -1) else names[label] for label in rows["label"]]
                labels = task.encode_labels(rows, list(range(len(data))), None, unseen, "evaluation")
                labels = [label for label in labels if label is not None]
                assert not labels or len(task.collate(labels, 1, "right")) == len(labels)
                read += 1
        except ValueError as problem:
            assert str(problem).startswith("Task 't': ")
    assert read > 30
