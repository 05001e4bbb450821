"""The template of a Space: its files, and its page on a tiny model."""

import importlib.util
import sys

import pytest
import yaml
from launch import ROOT
from reading import INPUTS, TEXT

from hf_multitask.modeling.handler import REQUIREMENTS

SPACE = ROOT / "examples" / "space"


@pytest.fixture
def app():
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_metadata_and_requirements_fit(app):
    metadata = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert metadata["sdk"] == "gradio" and (SPACE / metadata["app_file"]).is_file()
    assert len(metadata["short_description"]) <= 60  # what the Hub allows
    assert (SPACE / "requirements.txt").read_text().splitlines() == list(REQUIREMENTS)
    assert app.MODEL == "me/out" and "gradio" not in vars(app)


def test_every_kind_of_answer_has_a_component(app, build_pipeline):
    multitask = build_pipeline()
    plain = multitask(TEXT, tasks=["sequence-classification", "token-classification", "sentence-similarity"])
    name, values = app.shown(TEXT, plain["sequence-classification"])
    label, score = plain["sequence-classification"].values()
    assert name == "Label" and values == {"value": {label: score}}
    name, values = app.shown(TEXT, plain["token-classification"])
    marked = values["value"]["entities"]
    assert name == "HighlightedText" and values["value"]["text"] == TEXT and marked
    assert [TEXT[one["start"] : one["end"]] for one in marked] == [one["word"] for one in plain["token-classification"]]
    assert app.shown(TEXT, plain["sentence-similarity"])[0] == "JSON"
    assert app.shown("A fine [MASK].", multitask(INPUTS["fill-mask"], tasks=["fill-mask"])["fill-mask"])[0] == "Label"
    assert app.shown(TEXT, {"translation_text": "Ein Ort."}) == ("Textbox", {"value": "Ein Ort."})
    assert app.shown(TEXT, []) == ("HighlightedText", {"value": {"text": TEXT, "entities": []}})


def test_marks_do_not_overlap(app):
    spans = [("ORG", 8, 10), ("PER", 0, 5), ("NAME", 0, 3), ("PER", 4, 7), ("ORG", 7, 7)]
    marked = app.marks([{"entity_group": name, "start": start, "end": end} for name, start, end in spans])
    assert [tuple(one.values()) for one in marked] == [("PER", 0, 5), ("ORG", 8, 10)]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.filterwarnings("ignore")  # of gradio itself
def test_the_page_shows_the_answers(app, build_model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    gradio = pytest.importorskip("gradio", reason="gradio is not installed")
    build_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    page = app.build(app.load(str(tmp_path)))
    (render,) = page.renderables
    with gradio.Blocks() as made:
        render.fn(TEXT)
    components = {block.label: block for block in made.blocks.values() if getattr(block, "label", None)}
    assert list(components) == ["sentiment", "ner"]
    assert isinstance(components["sentiment"], gradio.Label)
    assert isinstance(components["ner"], gradio.HighlightedText)
    assert "".join(piece["token"] for piece in components["ner"].value) == TEXT
    assert "space_app" not in sys.modules
