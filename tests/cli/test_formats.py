"""Exports of annotation tools: their rows, what is not read, and broken files."""

import json

import pytest
import yaml
from transformers.utils import logging

from hf_multitask.cli.recipe import read_recipe

TEXT = "Ada 😀 met Bo."
CONLLU = """# sent_id = s1
# text = Du pain.
1-2\tDu\t_\t_\t_\t_\t_\t_\t_\t_
1\tDe\tde\tADP\tIN\t_\t3\tcase\t_\t_
2\tle\tle\tDET\tDT\tGender=Masc\t3\tdet\t_\t_
3\tpain\tpain\tNOUN\tNN\tNumber=Sing\t0\troot\t_\tSpaceAfter=No
3.1\tx\t_\t_\t_\t_\t_\t_\t_\t_
"""


@pytest.fixture
def load(tmp_path):
    """The rows of one export."""

    def make(form, content, name=None, **more):
        name = name or {"doccano": "a.jsonl", "label-studio": "a.json", "brat": "a.txt", "conllu": "a.conllu"}[form]
        for file, text in {name: content, **more}.items():
            (tmp_path / file.replace("_", ".")).write_bytes(text if isinstance(text, bytes) else text.encode())
        recipe = {
            "backbone": "b",
            "datasets": {"s": {"format": form, "data_files": name}},
            "tasks": {"s": {"type": "sequence-classification"}},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        recipe = read_recipe(tmp_path / "recipe.yaml")
        assert recipe.hub_datasets == {}
        return list(recipe.load()["s"]["train"])

    return make


@pytest.fixture
def warned(caplog):
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def span(start, end, label):
    return {"start": start, "end": end, "label": label}


# doccano


@pytest.mark.parametrize("key", ["label", "labels", "entities"])
def test_doccano_spans(key, load, warned):
    entity = {"id": 1, "start_offset": 10, "end_offset": 12, "label": "PER"} if key == "entities" else [10, 12, "PER"]
    rows = [
        {"id": 7, "text": TEXT, key: [entity], "Comments": []},
        {"id": 8, "text": "b", key: []},
        {"id": 9, "text": "c"},
    ]
    rows[0]["relations"] = [{"id": 1}]
    found = load("doccano", lines(*rows))
    assert [row["spans"] for row in found] == [[span(10, 12, "PER")], [], None]
    assert found[0] == {"id": 7, "text": TEXT, "spans": [span(10, 12, "PER")]}
    assert "1 relations in the exports of doccano are not read" in warned.text


def test_doccano_names(load):
    rows = [{"text": "a", "label": ["x"]}, {"text": "b", "label": []}]
    assert [row["label"] for row in load("doccano", lines(*rows))] == ["x", None]
    rows.append({"text": "c", "label": ["x", "y"]})
    assert [row["label"] for row in load("doccano", json.dumps(rows), "a.json")] == [["x"], [], ["x", "y"]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lines({"text": "a", "label": []}) + "{oops\n", "line 2 of '.*a.jsonl' is not valid JSON"),
        (lines({"label": []}), "line 1 of '.*a.jsonl' has no 'text'"),
        (lines({"text": "a", "label": "x"}), "line 1 of '.*' should have a list of labels. Found 'x'"),
        (lines({"text": "abc", "label": [[0, 9, "X"]]}), "line 1 .* has a span from 0 to 9, and its text has 3"),
        (lines({"text": "abc", "label": [[2, 1, "X"]]}), "line 1 .*: the span .* goes from 2 to 1"),
    ],
)
def test_broken_exports_of_doccano(content, said, load):
    with pytest.raises(ValueError, match=f"Dataset 's' could not be loaded: {said}"):
        load("doccano", content)


# Label Studio


def result(kind, name, **value):
    return {"type": kind, "from_name": name, "to_name": "text", "value": value}


def studio(*results, text=TEXT, **more):
    return {"id": 1, "data": {"text": text, "source": "x"}, "annotations": [{"result": list(results)}], **more}


def test_label_studio_makes_a_column_of_every_control(load, warned):
    region = {"start": 0, "end": 3, "text": "Ada", "labels": ["PER"]}
    later = {"start": 11, "end": 13, "text": "Bo", "labels": ["PER"]}  # in units of UTF-16
    first = studio(
        result("labels", "ner", **region),
        result("labels", "ner", **later),
        result("choices", "tone", choices=["calm"]),
        result("choices", "topics", choices=["a", "b"]),
        result("rating", "stars", rating=4),
        result("textarea", "summary", text=["two", "lines"]),
        {"type": "relation"},
    )
    cancelled = studio(annotations=[{"result": [], "was_cancelled": True}])
    found = load("label-studio", json.dumps([first, studio(), cancelled]))
    assert found[0] == {
        "text": TEXT,
        "source": "x",
        "ner": [span(0, 3, "PER"), span(10, 12, "PER")],
        "tone": "calm",
        "topics": ["a", "b"],
        "stars": 4,
        "summary": "two lines",
    }
    assert [row["ner"] for row in found[1:]] == [[], None] and found[1]["tone"] is found[1]["topics"] is None
    assert "1 results of type relation in the exports of label-studio are not read" in warned.text


def test_label_studio_in_its_small_form(load):
    region = {"start": 0, "end": 3, "text": "Ada", "labels": ["PER"]}
    rows = [
        {"text": TEXT, "ner": [region], "tone": "calm", "topics": {"choices": ["a", "b"]}, "id": 1, "annotator": 1},
        {"text": "b", "tone": "loud", "topics": {"choices": ["a"]}, "id": 2, "lead_time": 2.5},
    ]
    found = load("label-studio", json.dumps(rows))
    assert [row["ner"] for row in found] == [[span(0, 3, "PER")], []]
    assert [row["tone"] for row in found] == ["calm", "loud"] and found[0]["topics"] == ["a", "b"]
    assert set(found[0]) == {"text", "ner", "tone", "topics", "id"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"data": {}}', "'.*a.json' should be a JSON list, as the tool exports it. Found dict"),
        ("[1]", "entry 1 of '.*a.json' is not a JSON object"),
        ("[\n{]", "'.*a.json' is not valid JSON .*line 2"),
        (json.dumps([studio(annotations=None)]), "entry 1 of '.*a.json' has no 'annotations'"),
        (
            json.dumps([studio(), studio(result("labels", "n", start=0, end=2, text="Bo", labels=["X"]))]),
            "entry 2 of '.*a.json' has a region from 0 to 2, where its text is 'Ad', and not 'Bo'",
        ),
    ],
)
def test_broken_exports_of_label_studio(content, said, load):
    with pytest.raises(ValueError, match=f"Dataset 's' could not be loaded: {said}"):
        load("label-studio", content)


# brat


def test_brat(load, warned):
    notes = "T1\tPER 0 3\tAda\nT2\tPER 11 13\tBo\nR1\tmeets Arg1:T1 Arg2:T2\nT3\tX 0 3;5 7\tAda et\n"
    (found,) = load("brat", "Ada\net met Bo.\n", a_ann=notes)
    assert found == {"id": "a", "text": "Ada\net met Bo.\n", "spans": [span(0, 3, "PER"), span(11, 13, "PER")]}
    assert "1 relations, events, attributes and notes in the exports of brat" in warned.text
    assert "1 spans that are not continuous in the exports of brat" in warned.text


def test_brat_without_annotations_has_no_labels(load):
    assert load("brat", "Ada") == [{"id": "a", "text": "Ada", "spans": None}]


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ("T1\tPER 0 3\tAda\nT2 PER 0 3 Ada\n", "line 2 of '.*a.ann' is not a text-bound annotation"),
        ("T1\tPER 0 x\tAda\n", "line 1 of '.*a.ann' is not a text-bound annotation"),
        ("T1\tPER 1 3\tAda\n", "line 1 of '.*a.ann': the text from 1 to 3 is 'da', and not 'Ada'"),
    ],
)
def test_broken_annotations_of_brat(notes, said, load):
    with pytest.raises(ValueError, match=f"Dataset 's' could not be loaded: {said}"):
        load("brat", "Ada", a_ann=notes)


# CoNLL-U


def test_conllu(load, warned):
    first, second = load("conllu", CONLLU + "\n\n1\tOui\toui\tINTJ\t_\t_\t0\troot\t_\t_")
    assert first == {
        "id": "s1",
        "text": "Du pain.",
        "tokens": ["De", "le", "pain"],
        "lemma": ["de", "le", "pain"],
        "upos": ["ADP", "DET", "NOUN"],
        "xpos": ["IN", "DT", "NN"],
        "feats": ["_", "Gender=Masc", "Number=Sing"],
        "head": ["3", "3", "0"],
        "deprel": ["case", "det", "root"],
    }
    assert second["tokens"] == ["Oui"] and second["text"] is None
    assert "2 multiword tokens and empty nodes in the exports of conllu are not read" in warned.text


@pytest.mark.parametrize("line", ["1\tDe\tde", "x" + "\ta" * 9, "1 De de ADP IN _ 3 case _ _"])
def test_broken_conllu(line, load):
    with pytest.raises(ValueError, match=r"could not be loaded: line 8 of '.*a.conllu' should have ten columns"):
        load("conllu", CONLLU + line + "\n")


# spaCy


def test_spacy(load, tmp_path):
    spacy = pytest.importorskip("spacy")
    document = spacy.blank("en")("Ada met Bo")
    document.ents = [document.char_span(0, 3, "PER")]
    document.cats = {"calm": 1.0, "loud": 0.0}
    plain = spacy.blank("en")("Hello")
    content = spacy.tokens.DocBin(docs=[document, plain], store_user_data=True).to_bytes()
    first, second = load("spacy", content, "a.spacy")
    assert first["tokens"] == ["Ada", "met", "Bo"] and first["spans"] == [span(0, 3, "PER")]
    assert first["label"] == "calm" and first["upos"] is None
    assert second["spans"] is None and second["label"] is None
    with pytest.raises(ValueError, match=r"'.*b.spacy' is not a DocBin of spaCy"):
        load("spacy", b"nothing", "b.spacy")


def test_spacy_that_is_missing_is_named(load, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spacy.tokens", None)
    with pytest.raises(
        ValueError, match=r"is read by spaCy, which is not installed. Run pip install 'hf_multitask\[ann"
    ):
        load("spacy", b"nothing", "a.spacy")


# Keys


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"format": "docano"}, "`format` should be one of doccano, .* Did you mean 'doccano'"),
        ({"format": ["brat"]}, "`format` should be one of doccano"),
        ({"format": "csv"}, "`format` should be one of .* For a builder of datasets, write path"),
        ({"path": "doccano"}, "'doccano' is not a builder of datasets. Write format: doccano"),
        ({"format": "doccano", "path": "json"}, "has the unknown key 'path'"),
        ({"format": "doccano", "streaming": True}, "has the unknown key 'streaming'"),
        ({"format": "doccano", "data_files": None}, "has no 'data_files'"),
        ({"format": "doccano", "data_files": "none.jsonl"}, "there is no file '.*none.jsonl'"),
    ],
)
def test_keys_of_an_export(source, said, tmp_path):
    (tmp_path / "a.jsonl").write_text(lines({"text": "a", "label": ["x"]}))
    values = {"data_files": "a.jsonl", **source}
    recipe = {"backbone": "b", "datasets": {"s": values}, "tasks": {"s": {"type": "sequence-classification"}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match=f"Dataset 's'.*{said}"):
        read_recipe(tmp_path / "recipe.yaml")
