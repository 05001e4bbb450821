"""The page on aggregation names every method with its arguments, and its example runs."""

import inspect
import re
from functools import partial
from pathlib import Path

import conflicts
import pytest
from pages import files_of

from hf_multitask.aggregation import AGGREGATORS
from hf_multitask.aggregation.registry import LEFT_OUT

PAGE = (Path(__file__).parents[2] / "docs" / "aggregation.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_method_and_argument_has_its_place_in_the_table(name):
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
    made = AGGREGATORS[name]
    for argument, parameter in {} if isinstance(made, partial) else inspect.signature(made).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            assert f'"{argument}"' in row, argument
    if name not in ("constant", "mean", "sum"):
        assert re.search(r"\]\(https://", row)


def test_methods_left_out_are_mentioned():
    for name in LEFT_OUT:
        assert name.replace("_", "") in PAGE.lower()


@pytest.mark.trainer
def test_aggregator_of_the_page_trains(import_file, backbone_path, tmp_path):
    module = import_file("strongest_first", files_of("aggregation.md")["strongest_first.py"])
    trainer, _ = conflicts.train(backbone_path(), tmp_path, aggregator=module.StrongestFirst())
    trainer.train()
    assert trainer.engine.update.outcome.weights.mean() == pytest.approx(1)
    assert "cagrad" in PAGE and conflicts.train(
        backbone_path(), tmp_path, aggregation="cagrad", aggregation_kwargs={"c": 0.4}
    )
