"""Numbers among the arguments: none is NaN or infinite, and none is absurd."""

import dataclasses
import math
import re

import pytest

from hf_multitask import MultiTaskTrainingArguments
from hf_multitask.training.ranges import RANGES


def test_no_number_of_any_argument_is_nan_or_infinite(arguments):
    numbers = [one.name for one in dataclasses.fields(MultiTaskTrainingArguments) if "float" in str(one.type)]
    assert {"learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "layerwise_lr_decay"} <= set(numbers)
    for name in numbers:
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(ValueError, match=rf"^Parameter `{name}` should be .*\. Found `{name} = {value}`\.$"):
                arguments(**{name: value})
    for name in ("learning_rates", "weight_decays", "task_weights"):
        for value in (math.nan, math.inf, -1, "1", True):
            with pytest.raises(ValueError, match=rf"`{name}` should hold numbers .*\. Found {value!r} for 'ner'"):
                arguments(**{name: {"ner": value}})
    with pytest.raises(ValueError, match=r"`lr_scheduler_kwargs` should hold finite numbers. Found nan"):
        arguments(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": math.nan})
    for name, kwargs in (("balancing", {"temperature": math.inf}), ("sampling", {"temperature": math.nan})):
        with pytest.raises(ValueError, match="`temperature` should be"):
            arguments(**{name: {"balancing": "dwa", "sampling": "temperature"}[name], f"{name}_kwargs": kwargs})


def test_absurd_numbers_are_refused(arguments):
    for given, rule in [
        ({"learning_rate": 10.5}, "at most 10"),
        ({"learning_rate": -1e-5}, "0 or more"),
        ({"learning_rate": "5e-5"}, "a number"),
        ({"adam_beta1": 1.0}, "0 or more and less than 1"),
        ({"adam_beta2": -0.1}, "0 or more and less than 1"),
        ({"adam_epsilon": 0.0}, "more than 0"),
        ({"weight_decay": -0.1}, "0 or more"),
        ({"max_grad_norm": -1.0}, "0 or more"),
        ({"warmup_steps": -1}, "0 or more"),
        ({"eval_accumulation_steps": 0}, "1 or more"),
        ({"torch_empty_cache_steps": 0}, "1 or more"),
        ({"max_steps": -2}, "-1 or more"),
        ({"seed": -1}, "0 or more"),
        ({"data_seed": 2**32}, "at most 4294967295"),
    ]:
        with pytest.raises(ValueError, match=f"^Parameter `{next(iter(given))}` should be {rule}\\. Found"):
            arguments(**given)
    with pytest.raises(
        ValueError, match=r"`learning_rates` should hold numbers that are at most 10. Found 11 for 'ner'"
    ):
        arguments(learning_rates={"ner": 11})
    assert arguments(max_grad_norm=None).max_grad_norm == 0.0
    assert arguments(learning_rate=10, adam_beta1=0.0, weight_decay=0, eval_steps=None).learning_rate == 10


def test_every_number_has_a_range():
    """An argument that a release of Transformers brings is decided upon, not divided by."""
    elsewhere = {
        "label_smoothing_factor": "is refused",
        "local_rank": "is of the launcher",
        "save_total_limit": "means no limit where it is 0 or less",
        "non_finite_patience": "has an error of its own",
        "gradient_logging_steps": "has an error of its own",
        "early_stopping_patience": "has an error of its own",
        "forward_cost_tokens": "has an error of its own",
    }
    kinds = {one.name: str(one.type) for one in dataclasses.fields(MultiTaskTrainingArguments)}
    numbers = {name for name, kind in kinds.items() if re.search(r"\b(int|float)\b", kind) and "dict" not in kind}
    mixed = {name for name in numbers if re.search(r"\b(str|bool|list)\b", kinds[name])}
    assert numbers - mixed - RANGES.keys() - elsewhere.keys() == set()
    assert elsewhere.keys().isdisjoint(RANGES)
