"""Every balancer by name, with the arguments that a short run needs to see it at work."""

import torch

from hf_multitask.balancing import BALANCING

KWARGS = {
    "fixed": {"weights": {"sentiment": 0.5, "ner": 2.0}},
    "dwa": {"interval": 2},
    "stch": {"mu": 0.5},
}
# Name and arguments; the balancers whose weights depend on the losses of the step also exact.
CASES = [
    *((name, KWARGS.get(name, {})) for name in BALANCING),
    *((name, {**KWARGS.get(name, {}), "exact": True}) for name, kind in BALANCING.items() if kind.reads_losses),
]
IDS = [f"{name}-exact" if "exact" in kwargs else name for name, kwargs in CASES]

# One of every kind: weights that are learned, remembered losses, a random draw, evaluations, gradients, the step itself.
QUICK = ["uncertainty", "dwa", "random", "coba", "gradnorm", "famo-exact"]


def balancing(name, kwargs):
    """Training arguments of a case; validation slopes need evaluations."""
    evaluates = {"eval_strategy": "steps", "eval_steps": 1} if BALANCING[name].reads_evaluations else {}
    return {"balancing": name, "balancing_kwargs": kwargs, **evaluates}


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def relative_difference(ones, others) -> float:
    """Of weights by name: the norm of the difference over that of the weights."""
    difference = torch.cat([(ones[name].double() - others[name].double()).flatten() for name in ones]).norm()
    return float(difference / torch.cat([value.double().flatten() for value in ones.values()]).norm())
