"""A training that ends in NaN says so in one sentence and exits with an error; what was good stays."""

from tiny import read_rows


def test_weights_that_overflow_end_a_run(kitchen):
    recipe = kitchen.changed(
        "training", weight_decay=1e38, learning_rate=10, max_steps=1, eval_strategy="no", save_strategy="no"
    )
    code, _, err = kitchen.run(["train"], recipe)
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("hf-multitask: error: Weight 'backbone.") and "is NaN or infinite in" in last
    assert "after step 1, so the training that ends with it has failed. Resume from an earlier checkpoint" in last
    assert "Traceback" not in err and not (kitchen.folder / "out" / "model.safetensors").exists()


def test_losses_that_are_never_finite_end_a_run(kitchen):
    for split, count in (("train", 24), ("validation", 9), ("test", 9)):
        rows = read_rows("sentiment", split, count)
        kitchen.write(f"sentiment/{split}.jsonl", [{**row, "label": 1e30} for row in rows])
    recipe = kitchen.changed("tasks", sentiment={"type": "sequence-classification", "problem_type": "regression"})
    code, _, err = kitchen.run(["train"], recipe, "--max_steps", "9")
    last = err.splitlines()[-1]
    assert code == 2 and "Traceback" not in err
    assert last.startswith("hf-multitask: error: Task 'sentiment': its loss is inf in step 3, from rows")
