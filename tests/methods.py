"""Every balancer and every aggregator by name, as the training arguments that put it to work."""

from balancers import CASES, IDS, balancing

from hf_multitask.aggregation import AGGREGATORS

AGGREGATION_KWARGS = {"constant": {"weights": {"ner": 3.0}}, "pcd": {"primary": "ner"}}
# The tasks of a run should have a 'sentiment' and a 'ner' among them, and a third for what takes extremes away.
METHODS = {
    **{f"balancing-{word}": balancing(*case) for word, case in zip(IDS, CASES, strict=True)},
    **{
        f"aggregation-{name}": {"aggregation": name, "aggregation_kwargs": AGGREGATION_KWARGS.get(name)}
        for name in AGGREGATORS
    },
}
