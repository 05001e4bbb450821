"""``streaming: true`` under a dataset of a recipe."""

import json

import pytest


def streamed(kitchen, **training):
    recipe = kitchen.changed("datasets", "sentiment", streaming=True)
    recipe["tasks"]["sentiment"]["label_names"] = ["negative", "positive"]
    recipe["training"] |= {"sampling": "uniform", "max_steps": 4, **training}
    return recipe


def test_training_split_is_a_stream_and_the_others_are_read(kitchen):
    assert kitchen.run(["train"], streamed(kitchen, max_eval_samples={"sentiment": 5}))[0] == 0
    results = json.loads((kitchen.folder / "out" / "all_results.json").read_text())
    assert {"eval_sentiment_accuracy", "test_sentiment_accuracy", "eval_ner_f1"} <= set(results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_steps": -1}, "The number of rows of the stream 'sentiment' is unknown. Set max_steps"),
        ({"sampling": "proportional"}, "The number of rows of the stream 'sentiment' is unknown. Set max_steps"),
    ],
)
def test_stream_of_unknown_size_says_what_it_needs(change, message, kitchen):
    code, _, error = kitchen.run(["train"], streamed(kitchen, **change))
    assert code and message in error
