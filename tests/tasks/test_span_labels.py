import json

import pytest
from datasets import Dataset, Features, List, Value, load_dataset

from hf_multitask.tasks.span_labels import span_of, spans_of

DICT = {"start": 0, "end": 5, "label": "PER"}
OFFSETS = {"id": 7, "label": "PER", "start_offset": 0, "end_offset": 5}
TRIPLE = [0, 5, "PER"]


@pytest.mark.parametrize(
    "value",
    [
        TRIPLE,
        tuple(TRIPLE),
        ["0", "5", "PER"],
        [0.0, 5.0, "PER"],
        DICT,
        {"start": 0, "end": 5, "label": None, "slot": "PER"},
        OFFSETS,
        {"start": None, "end": None, **OFFSETS},
        json.dumps(TRIPLE),
        json.dumps(OFFSETS),
    ],
)
def test_every_form_of_a_span_is_the_same_span(value):
    assert span_of(value) == (0, 5, "PER")
    assert spans_of([value, value]) == [(0, 5, "PER")] * 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0, 5], r"\[0, 5\] is not a span. A span is \[start, end, label\]"),
        ("0-5", "'0-5' is neither a span nor JSON"),
        (5, "5 is not a span"),
        (None, "None is not a span"),
        ({"start": 0, "label": "PER"}, "should have a whole number as start and end. Found None"),
        ([0, True, "PER"], "should have a whole number as start and end. Found True"),
        ([0, 2.5, "PER"], "should have a whole number as start and end. Found 2.5"),
        ([0, "five", "PER"], "should have a whole number as start and end. Found 'five'"),
        ([0, 5, 3], "should be a name. Found 3"),
        ([0, 5, ""], "should be a name. Found ''"),
        ({"start": 0, "end": 5, "tag": "PER"}, "should be a name. Found None"),
        ([5, 5, "PER"], "goes from 5 to 5. The start of a span should be 0 or more"),
        ([-1, 5, "PER"], "goes from -1 to 5"),
    ],
)
def test_what_is_no_span_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        span_of(value)


@pytest.mark.parametrize(
    ("cell", "spans"),
    [
        (None, None),
        ("  ", None),
        ([], []),
        ("[]", []),
        (json.dumps([TRIPLE, DICT]), [(0, 5, "PER")] * 2),
        ({"start": [0, 6], "end": [5, 9], "label": ["PER", "LOC"]}, [(0, 5, "PER"), (6, 9, "LOC")]),
        ({"start": [], "end": [], "label": []}, []),
    ],
)
def test_cells(cell, spans):
    assert spans_of(cell) == spans


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (TRIPLE, "Found the single span .* Put it in a list"),
        (DICT, "should be a list. Found {'start': 0"),
        (3, "should be a list. Found 3"),
        ([[1]], r"\[1\] is not a span"),
    ],
)
def test_cells_that_hold_no_spans_are_refused(cell, message):
    with pytest.raises(ValueError, match=message):
        spans_of(cell)


def test_spans_as_datasets_loads_them(tmp_path):
    """Doccano writes lists of numbers and a name, which datasets has no common type for."""
    for number, span in enumerate((TRIPLE, OFFSETS, DICT)):
        file = tmp_path / f"{number}.jsonl"
        lines = [
            {"text": "Maria left", "label": [span]},
            {"text": "It rains", "label": []},
            {"text": "a", "label": None},
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows = load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
        assert [spans_of(cell) for cell in rows["label"]] == [[(0, 5, "PER")], [], None]
    strings = Dataset.from_dict(
        {"label": [[["0", "5", "PER"]]]}, features=Features({"label": List(List(Value("string")))})
    )
    assert spans_of(strings[0]["label"]) == [(0, 5, "PER")]
