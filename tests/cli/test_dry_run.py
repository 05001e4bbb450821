"""A dry run checks everything, prints the plan, and leaves nothing behind."""

import pytest


@pytest.mark.trainer
def test_the_plan_is_printed_and_nothing_is_trained(kitchen):
    code, out, errors = kitchen.run(["train", "--dry_run"], kitchen.recipe)
    assert code == 0, errors
    assert "Plan: 5 steps of 8 rows" in out + errors and "train_runtime" not in out + errors
    assert "Forward passes: an additional one costs as much as 64 tokens (a constant on CPUs)." in out + errors
    output = kitchen.folder / "out"
    assert not output.exists() or not any(path.is_file() for path in output.rglob("*"))


@pytest.mark.trainer
def test_every_stage_has_a_plan(kitchen):
    recipe = kitchen.changed("training", num_train_epochs=2)
    recipe["stages"] = [{"tasks": ["ner"], "num_train_epochs": 1}, {}]
    code, out, errors = kitchen.run(["train", "--dry_run"], recipe)
    assert code == 0, errors
    said = out + errors
    assert "Stage 1 of 2: ner" in said and "Stage 2 of 2: ner, sentiment" in said
    assert "Plan: 2 steps" in said and "Plan: 10 steps" in said


def test_mistakes_are_found(kitchen):
    recipe = kitchen.changed("tasks", ner={"type": "token-classification", "tags_column": "tags"})
    code, _, errors = kitchen.run(["train", "--dry_run"], recipe)
    assert code == 2 and "no column 'tags'" in errors
