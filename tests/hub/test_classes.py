"""What a card shows of classes and slices: the evaluation of the saved weights, by split, and a picture if it can."""

from importlib.util import find_spec

import pytest
from datasets import Dataset

from hf_multitask.hub.classes import PICTURE_NAME, best_split, draw_matrices, matrices, tables

OWN = {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 3}


def report(**kwargs):
    return {"metrics": {"accuracy": 0.5}, "classes": {"a|b": OWN}, **kwargs}


def test_tables_escape_labels_and_show_what_is_missing():
    values = {"de": {"rows": 1200, "metrics": {"accuracy": None}, "missing": {"accuracy": "why"}}}
    lines = "\n".join(tables({"topic": report(slices={"language": values})}, "test")).splitlines()
    assert "| `a\\|b` | 0.5000 | 1.0000 | 0.6667 | 3 |" in lines
    assert "| `language` | rows | accuracy |" in lines and "| `de` | 1,200 | - |" in lines
    assert lines[0] == "### By class, on test"


def test_long_tables_are_folded_and_many_tasks_have_none():
    many = {f"label {number}": OWN for number in range(30)}
    assert any("<summary>30 labels</summary>" in part for part in tables({"topic": report(classes=many)}, "test"))
    assert best_split({"validation": {f"task {number}": report() for number in range(30)}}) is None
    assert best_split({"validation": {"a": report()}, "test": {}}) == "validation"


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="the extra 'report' is not installed")
def test_the_picture_is_the_same_for_the_same_numbers():
    found = {"topic": {"labels": ["$a$", "b"], "rows": [[3, 0], [1, 2]]}, "empty": {"labels": ["a"], "rows": [[0]]}}
    first, second = (draw_matrices(found, "numbers") for _ in range(2))
    assert first == second and first.startswith(b"\x89PNG") and b"numbers" in first
    wide = {"labels": list(map(str, range(40))), "rows": [[0] * 40] * 40}
    assert list(matrices({"a": report(confusion_matrix=wide), "b": report(confusion_matrix=found["topic"])})) == ["b"]


def test_a_card_shows_the_evaluation_of_the_saved_weights_only(build, data, tmp_path):
    trainer = build(load_best_model_at_end=True, save_strategy="steps", save_steps=2, learning_rate=0.0)
    trainer.train()  # nothing is better than the first evaluation, and the last one is of other weights
    path = tmp_path / "out" / "README.md"
    assert "By class" not in path.read_text(encoding="utf-8") and not (path.parent / PICTURE_NAME).exists()
    trainer.evaluate()
    trainer.create_model_card()
    assert "### By class, on validation" in path.read_text(encoding="utf-8")
    trainer.evaluate(
        {"sentiment": Dataset.from_list(data(10, 6, "test")["sentiment"].to_list())}, metric_key_prefix="test"
    )
    trainer.create_model_card()
    text = path.read_text(encoding="utf-8")
    assert "### By class, on test" in text and "on validation\n" not in text
    assert (path.parent / PICTURE_NAME).exists() == (find_spec("matplotlib") is not None)
