"""The page of a diagnosis: whole, legible without a network, and safe with any name."""

import copy
from html.parser import HTMLParser

import pytest

from hf_multitask.hub.diagnosis import diagnosis_page, not_measured_in_words

NASTY = "<b>\"a\" & 'b'</b><script>alert(1)</script>"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page whose tags all close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def pairs(tasks, value):
    return {one: {other: value(i, j) for j, other in enumerate(tasks)} for i, one in enumerate(tasks)}


def made(tasks):
    """A report of made-up numbers."""
    price = {"kwargs": {}, "time": 1.2, "low": 1.1, "high": 1.4, "kept_mb": 173.0, "peak_mb": None}
    table = {
        "mean": pairs(tasks, lambda i, j: 1.0 if i == j else 0.3 - 0.2 * ((i + j) % 4)),
        "standard_error": pairs(tasks, lambda i, j: 0.02),
        "conflicts": pairs(tasks, lambda i, j: 0.25),
        "steps": pairs(tasks, lambda i, j: 20),
    }
    one = {"models": 1, "groups": [tasks], "affinity": 0.1, "gain": 0.0, "standard_error": 0.0}
    return {
        "format": 1,
        "hf_multitask": "0.0",
        "recipe": "recipe.yaml",
        "backbone": "some/backbone",
        "tasks": tasks,
        "seed": 42,
        "device": "cpu",
        "budget": {
            "steps": 300,
            "steps_of_the_recipe": 485,
            "rows_of_a_step": 32,
            "measured_steps": [8, 23],
            "rows": dict.fromkeys(tasks, 4800),
        },
        "cosines": {**table, "norms": dict.fromkeys(tasks, 0.5)},
        "affinity": {**table, "unit": 0.1},
        "groups": {
            "search": "all groupings",
            "by_models": [one],
            "suggestion": {"groups": [tasks], "harmed": [], "words": "Train one model for all tasks."},
        },
        "single": {
            "metric": dict.fromkeys(tasks, "accuracy"),
            "together": dict.fromkeys(tasks, 0.9),
            "alone": dict.fromkeys(tasks, 0.88),
            "noise": dict.fromkeys(tasks, 0.01),
        },
        "prices": {
            "seconds_of_a_plain_step": 0.4,
            "balancing": {"dwa": price, "random": price},
            "aggregation": {"upgrad": price, "random": {**price, "peak_mb": 12.0}},
            "not_measured": {"aggregation": {"nash_mtl": "pip install 'hf_multitask[aggregation]'"}},
        },
        "left_out": {},
        "failed": {},
        "seconds": {"all": 321.0},
        "conclusion": "Train one model for all tasks.",
    }


@pytest.mark.parametrize("count", [2, 5, 30])
def test_a_page_holds_all_parts_and_fetches_nothing(count):
    report = made([f"task_{number}" for number in range(count)])
    page = Page(diagnosis_page(report))
    sections = [value for name, value in page.attributes if name == "id"]
    assert sections == ["cosines", "affinity", "groups", "single", "prices"]
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not any(name in ("src", "href", "srcset", "action") for name, _ in page.attributes)
    assert "://" not in page.text and "url(" not in page.text and "@import" not in page.text
    for words in (
        "300 steps of 32 rows (the recipe has 485)",
        "Train one model",
        "upgrad",
        "nash_mtl: pip install",
    ):
        assert words in page.text
    assert all(task in page.text for task in report["tasks"])


def test_methods_that_were_not_measured_share_a_line_with_their_reason():
    reasons = {"aggregation": {"upgrad": "why", "cagrad": "why", "krum": "other"}, "balancing": {"gradnorm": "why"}}
    lines = ["aggregation upgrad, cagrad: why", "aggregation krum: other", "balancing gradnorm: why"]
    assert not_measured_in_words(reasons) == lines


def test_names_are_text_whatever_they_hold():
    report = made([NASTY, "ner"])
    report |= {"recipe": NASTY, "backbone": NASTY, "device": NASTY, "conclusion": NASTY, "hf_multitask": NASTY}
    report["failed"] = {NASTY: NASTY}
    report["single"]["metric"][NASTY] = NASTY
    report["prices"]["balancing"] = {NASTY: report["prices"]["balancing"]["dwa"]}
    report["prices"]["not_measured"] = {NASTY: {NASTY: NASTY}}
    report["groups"]["search"] = NASTY
    page = Page(diagnosis_page(report))
    assert not {"b", "script"} & set(page.tags)
    assert page.text.count(NASTY) > 12
    assert any(name == "title" and value.startswith(f"{NASTY}, ner") for name, value in page.attributes)


def test_what_is_missing_is_left_out_and_what_failed_is_told():
    report = made(["a", "b"])
    for part in ("cosines", "single", "prices"):
        del report[part]
    report["failed"] = {"prices": "out of memory"}
    report["left_out"] = {"single": "task 'a' has no validation data"}
    page = Page(diagnosis_page(report))
    assert [value for name, value in page.attributes if name == "id"] == ["affinity", "groups"]
    assert "Failed: prices (out of memory)" in page.text
    assert "Left out: single (task 'a' has no validation data)" in page.text


def test_what_was_not_measured_and_what_is_noise_has_no_colour():
    report = made(["a", "b"])
    for name in ("mean", "standard_error", "conflicts"):
        report["cosines"][name] = copy.deepcopy(report["cosines"][name])
        report["cosines"][name]["a"]["b"] = None
    report["cosines"]["standard_error"]["b"]["a"] = 0.2
    del report["affinity"], report["groups"]
    assert "rgba" not in diagnosis_page(report)
    assert "<td>?</td>" in diagnosis_page(report)
    report["cosines"]["standard_error"]["b"]["a"] = 0.0
    styles = [value for name, value in Page(diagnosis_page(report)).attributes if name == "style"]
    depth = 0.75 * report["cosines"]["mean"]["b"]["a"]
    assert [style for style in styles if "rgba" in style] == [f"background: rgba(0, 114, 178, {depth:.3f})"]
