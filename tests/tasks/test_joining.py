"""Several columns as one text: in the encoded rows, in messages, in training, evaluation and prediction files."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoConfig, AutoTokenizer

from hf_multitask import (
    FillMask,
    MultiTaskModel,
    MultiTaskTrainer,
    SentenceSimilarity,
    SequenceClassification,
    TextGeneration,
    TokenClassification,
)
from hf_multitask.cli import main
from hf_multitask.data import encode_dataset
from hf_multitask.tasks import build_task

TITLES = ["A fine place", "", None, "Late"]
BODIES = ["in London", "and I left", "it is", "again"]
JOINED = ["A fine place in London", "and I left", "it is", "Late again"]
KINDS = {
    "sequence-classification": {"label_names": ["a", "b"], "problem_type": "single_label_classification"},
    "sentence-similarity": {"text_pair_column": "body"},
    "fill-mask": {},
    "text-generation": {},
}


@pytest.fixture
def encode(backbone_path):
    def make(kind, rows, **arguments):
        path = backbone_path("gpt2" if kind == "text-generation" else "bert")
        tokenizer, config = AutoTokenizer.from_pretrained(path), AutoConfig.from_pretrained(path)
        task = build_task("t", {"type": kind, **KINDS[kind], **arguments})
        rows = rows if isinstance(rows, Dataset) else Dataset.from_dict(rows)
        options = {"tokenizer": tokenizer, "config": config, "split": "train", "training": True}
        return encode_dataset("t", rows, [task], **options).rows

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_read_as_one_text_joined_by_a_space(kind, encode):
    rows = {"title": TITLES, "body": BODIES, "label": ["a", "b", "a", None], "text": JOINED}
    several, one = (encode(kind, rows, text_column=column) for column in (["title", "body"], "text"))
    assert several["input_ids"][:] == one["input_ids"][:]
    assert several.column_names == one.column_names


def test_words_and_classes_are_joined_as_well(encode):
    features = Features({"kind": ClassLabel(names=["Late", "A fine place"]), "label": Value("string")})
    rows = Dataset.from_list([{"kind": 1, "label": "a"}, {"kind": 0, "label": "b"}], features=features)
    rows = rows.add_column("body", [["in", "London"], ["again"]])
    whole = {"text": [JOINED[0], JOINED[3]], "label": ["a", "b"]}
    found = encode("sequence-classification", rows, text_column=["kind", "body"])
    assert found["input_ids"][:] == encode("sequence-classification", whole)["input_ids"][:]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"title": ["a"], "label": ["a"]}, "the train data has no column 'body'"),
        (
            {"title": ["a"], "body": [5], "label": ["a"]},
            r"row 0 of the train data, column 'title \+ body': a text should",
        ),
        ({"title": ["a", None], "body": ["b", None], "label": ["a", "b"]}, "row 1 of the train data, column .*None"),
    ],
)
def test_columns_that_are_no_texts_are_named(rows, said, encode):
    with pytest.raises(ValueError, match=f"Task 't': {said}"):
        encode("sequence-classification", rows, text_column=["title", "body"])


@pytest.mark.parametrize("column", [[], [""], ["a", 5], 5, {"a": "b"}])
def test_a_text_column_is_a_column_or_a_list_of_them(column):
    for kind in (SequenceClassification, SentenceSimilarity, FillMask, TextGeneration):
        with pytest.raises(ValueError, match=r"`text_column` should be a column or a list of columns. Found"):
            kind(text_column=column)


def test_spans_count_the_characters_of_one_column():
    with pytest.raises(ValueError, match=r"`text_column` should be one column. Found `text_column = \['a', 'b'\]`"):
        TokenClassification(text_column=["a", "b"], spans_column="spans")


def test_a_model_trains_evaluates_and_predicts_on_several_columns(build_model, arguments, tokenizer, tmp_path, capsys):
    rows = Dataset.from_dict({"title": TITLES * 3, "body": BODIES * 3, "label": ["a", "b", "a", "b"] * 3})
    task = SequenceClassification(text_column=["title", "body"], label_names=["a", "b"])
    trainer = MultiTaskTrainer(
        model=build_model(tasks={"t": task}),
        args=arguments(max_steps=2),
        train_dataset={"t": rows},
        eval_dataset={"t": rows},
        processing_class=tokenizer,
    )
    trainer.train()
    accuracy = trainer.evaluate()["eval_t_accuracy"]
    trainer.save_model(str(tmp_path / "model"))
    assert MultiTaskModel.from_pretrained(tmp_path / "model").config.task("t")["text_column"] == ["title", "body"]
    for name, text in (
        ("rows.jsonl", "".join(json.dumps({"title": t, "body": b}) + "\n" for t, b in zip(TITLES, BODIES))),
        ("rows.csv", "title,body\n" + "".join(f"{t or ''},{b}\n" for t, b in zip(TITLES, BODIES))),
        ("texts.txt", "".join(f"{text}\n" for text in JOINED)),
    ):
        (tmp_path / name).write_text(text)
        capsys.readouterr()
        assert main(["predict", str(tmp_path / "model"), "--input", str(tmp_path / name)]) == 0
        answers = [json.loads(line)["t"]["label"] for line in capsys.readouterr().out.splitlines()]
        assert sum(map(str.__eq__, answers, ["a", "b", "a", "b"])) / 4 == accuracy
