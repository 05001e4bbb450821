import pytest

from hf_multitask.data import build_rates


def test_temperature_is_the_papers_formula():
    rates = build_rates("temperature", {"temperature": 2, "cap": 100}).rates({"a": 16, "b": 400})
    assert rates == {"a": 4.0, "b": 10.0}
    assert build_rates("temperature", {"temperature": 1}).rates({"a": 16, "b": 400}) == {"a": 16, "b": 400}


def test_annealed_is_the_papers_formula_with_end_of_0_2():
    rates, sizes = build_rates("annealed", {"end": 0.2}), {"a": 10, "b": 1000}
    for progress, alpha in ((0.0, 1.0), (0.5, 0.6), (1.0, 0.2)):  # the paper's epochs 1, 3 and 5 of 5
        assert rates.rates_at(sizes, progress) == pytest.approx({"a": 10**alpha, "b": 1000**alpha})
    assert rates.rates(sizes) == {"a": 10, "b": 1000}


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("proportionl", None, "`sampling` should be one of .* Did you mean 'proportional'?"),
        ("temperature", {"temperature": 0.5}, "`temperature` should be 1 or more. Found `temperature = 0.5`"),
        ("temperature", {"cap": 0}, "`cap` should be a whole number of rows"),
        ("temperature", {"temprature": 2}, "does not accept all of the sampling_kwargs"),
        ("annealed", {"end": 2}, "`end` should be a number from 0 to 1. Found `end = 2`"),
        ("fixed", None, "should have a rate for each dataset"),
        ("fixed", {"rates": {"a": -1}}, "The rate of 'a' should be a number of 0 or more. Found -1"),
        ("fixed", {"rates": {"a": 0}}, "sum to 0"),
    ],
)
def test_unusable_sampling_fails_when_built(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_rates(name, kwargs)


def test_fixed_rates_fit_the_data():
    rates = build_rates("fixed", {"rates": {"ner": 1, "sentimet": 2}})
    with pytest.raises(ValueError, match=r"a rate for 'sentimet', but .* Did you mean 'sentiment'?"):
        rates.rates({"ner": 3, "sentiment": 4})
    with pytest.raises(ValueError, match=r"has no rate for 'pos'"):
        rates.rates({"ner": 3, "sentimet": 4, "pos": 5})
