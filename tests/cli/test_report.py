"""``evaluate --report``: a page that needs nothing else, and the report that train and evaluate leave beside it."""

import json
import re
from html.parser import HTMLParser

import pytest

EVIL = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """The tags of a page, its text, and whatever it would load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.loads = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def recipe(kitchen):
    """A recipe whose rows and labels contain what a page must escape."""
    for split, count in (("train", 24), ("validation", 9), ("test", 9)):
        lines = (kitchen.folder / f"sentiment/{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines[:count]]
        names = {"negative": EVIL, "positive": "positive"}
        for place, row in enumerate(rows):
            row |= {"label": names[row["label"]], "source": [EVIL, "b"][place % 2]}
            row["text"] = f"{row['text']} {EVIL}"
        kitchen.write(f"sentiment/{split}.jsonl", rows)
    changed = kitchen.changed("training", max_steps=1, eval_strategy="no")
    changed["tasks"]["sentiment"]["slice_columns"] = ["source"]
    return changed


def test_train_and_evaluate_leave_a_report_and_a_page(kitchen, recipe):
    code, table, err = kitchen.run(["train"], recipe)
    assert code == 0, err
    table = table[table.index("metric  validation") :]
    assert "accuracy/source=b" in table and "macro_f1/source=" not in table
    left = json.loads((kitchen.folder / "out" / "eval_report.json").read_text(encoding="utf-8"))
    assert list(left) == ["validation", "test"] and set(left["test"]) == {"sentiment", "ner"}
    results = json.loads((kitchen.folder / "out" / "test_results.json").read_text(encoding="utf-8"))
    assert left["test"]["sentiment"]["metrics"]["accuracy"] == results["test_sentiment_accuracy"]
    assert set(left["test"]["sentiment"]["slices"]["source"]) == {EVIL, "b"}

    folder = kitchen.folder / "new" / "report"
    model = str(kitchen.folder / "out")
    code, out, err = kitchen.run(["evaluate", model], recipe, "--report", str(folder))
    assert code == 0, err
    assert "The report is in" in out
    again = json.loads((folder / "eval_report.json").read_text(encoding="utf-8"))
    assert again["test"]["sentiment"]["confusion_matrix"] == left["test"]["sentiment"]["confusion_matrix"]
    text = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.loads and not page.open and "script" not in page.tags and {"svg", "table"} <= set(page.tags)
    assert not re.search(r"https?://|@import|url\(", text)
    assert 'content="width=device-width' in text and "&lt;script&gt;" in text
    assert "Worst answers" in text and "Confusion matrix" in text and "By source" in text
    assert not [width for width in re.findall(r"width(?:=\"|: )(\d+)(?:px)?\"", text) if int(width) > 390]


def test_a_file_is_no_folder(kitchen, recipe):
    kitchen.run(["train"], recipe)
    file = kitchen.folder / "recipe.yaml"
    code, _, err = kitchen.run(["evaluate", str(kitchen.folder / "out")], recipe, "--report", str(file))
    assert code == 2 and "--report names the file" in err
