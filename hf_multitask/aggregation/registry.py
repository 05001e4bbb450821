"""The methods by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial

from .base import Aggregator, GramianAggregator, VectorAggregator, check_number
from .fairness import FairGrad, NashMTL
from .stateful import CRMOGM, PCD, GradVac
from .vectors import GradDrop, TrimmedMean
from .weightings import ConFIG, Constant, PCGrad, Projected, Weighting, torchjd_weighting

NONE = "none"


def _cagrad(*, c: float = 0.4, norm_eps: float = 0.0001) -> Aggregator:
    check_number("c", c, least=0)
    check_number("norm_eps", norm_eps, least=0)
    return torchjd_weighting("cagrad", c=c, norm_eps=norm_eps)


def _mgda(*, epsilon: float = 0.001, max_iters: int = 100) -> Aggregator:
    check_number("epsilon", epsilon, above=0)
    check_number("max_iters", max_iters, least=1, whole=True)
    return torchjd_weighting("mgda", epsilon=epsilon, max_iters=max_iters)


def _aligned_mtl(*, scale_mode: str = "min") -> Aggregator:
    if scale_mode not in ("min", "median", "rmse"):
        raise ValueError(f"Parameter `scale_mode` should be min, median or rmse. Found `scale_mode = {scale_mode!r}`.")
    return torchjd_weighting("aligned_mtl", scale_mode=scale_mode)


def _upgrad(*, reg_eps: float = 0.0001) -> Aggregator:
    return Projected(together=False, reg_eps=reg_eps)


def _dualproj(*, reg_eps: float = 0.0001) -> Aggregator:
    return Projected(together=True, reg_eps=reg_eps)


def _krum(*, n_byzantine: int = 0, n_selected: int = 1) -> Aggregator:
    check_number("n_byzantine", n_byzantine, least=0, whole=True)
    check_number("n_selected", n_selected, least=1, whole=True)
    return torchjd_weighting("krum", n_byzantine=n_byzantine, n_selected=n_selected)


def _cr_mogm(*, method: str = "upgrad", alpha: float = 0.9, **kwargs: object) -> Aggregator:
    other = build_aggregator(method, kwargs)
    if not isinstance(other, GramianAggregator):
        raise ValueError(f"Aggregation 'cr_mogm' smooths weights, but '{method}' has none. Choose another method.")
    return CRMOGM(other, alpha=alpha)


AGGREGATORS: dict[str, Callable[..., Aggregator]] = {
    "pcgrad": PCGrad,
    "gradvac": GradVac,
    "cagrad": _cagrad,
    "mgda": _mgda,
    "imtl_g": partial(torchjd_weighting, "imtl_g"),
    "nash_mtl": NashMTL,
    "aligned_mtl": _aligned_mtl,
    "fairgrad": FairGrad,
    "upgrad": _upgrad,
    "dualproj": _dualproj,
    "config": ConFIG,
    "graddrop": GradDrop,
    "pcd": PCD,
    "cr_mogm": _cr_mogm,
    "krum": _krum,
    "trimmed_mean": TrimmedMean,
    "constant": Constant,
    "random": partial(torchjd_weighting, "random"),
    "mean": partial(torchjd_weighting, "mean"),
    "sum": partial(torchjd_weighting, "sum"),
}

# Methods of torchjd that are not supported, with the reason.
LEFT_OUT = {
    "modo": "needs gradients of two or three independent parts of a step, but a step has one",
    "sdmgrad": "needs gradients of two or three independent parts of a step, but a step has one",
    "excess_mtl": "keeps a sum of squares as large as K models for the whole run",
}


def build_aggregator(name: str, kwargs: Mapping[str, object] | None = None) -> Aggregator | None:
    """The method with a name and arguments; None for ``none``.

    Raises:
        ValueError: the name or an argument is unknown or invalid.
        ImportError: the method needs a solver that is not installed.
    """
    word = str(name).lower().replace("-", "_")
    given = dict(kwargs or {})
    if word == NONE:
        if given:
            raise ValueError("Parameter `aggregation_kwargs` needs an aggregation. Set one, or remove it.")
        return None
    if word in LEFT_OUT:
        raise ValueError(f"Aggregation '{word}' is not supported: it {LEFT_OUT[word]}. Choose another one.")
    if word not in AGGREGATORS:
        near = get_close_matches(word, list(AGGREGATORS), n=1)
        raise ValueError(
            f"Parameter `aggregation` should be one of {', '.join([NONE, *AGGREGATORS])}. "
            f"Found `aggregation = {name!r}`." + (f" Did you mean '{near[0]}'?" if near else "")
        )
    _check_arguments(word, given)
    try:
        return AGGREGATORS[word](**given)
    except ImportError as problem:
        raise ImportError(
            f"Aggregation '{word}' needs torchjd and its solvers ({problem}). pip install 'hf_multitask[aggregation]'"
        ) from problem
    except (TypeError, ValueError, AttributeError) as problem:
        raise ValueError(f"Aggregation '{word}' cannot use aggregation_kwargs {given}: {problem}") from problem


def _check_arguments(word: str, given: Mapping[str, object]) -> None:
    parameters = inspect.signature(AGGREGATORS[word]).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()) and word == "cr_mogm":
        return
    known = [] if isinstance(AGGREGATORS[word], partial) else list(parameters)
    for key in given:
        if key not in known:
            takes = f"its arguments are {', '.join(known)}" if known else "it has no arguments"
            near = get_close_matches(key, known, n=1)
            raise ValueError(
                f"Aggregation '{word}' has no argument `{key}` for aggregation_kwargs; {takes}."
                + (f" Did you mean '{near[0]}'?" if near else "")
            )
    for key, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY
        if needed and key not in given:
            raise ValueError(f"Aggregation '{word}' needs `{key}`. Add it to aggregation_kwargs.")


def as_aggregator(given: object) -> Aggregator:
    """Convert an object of the user to an aggregator: one of this package, or a weighting or aggregator of torchjd.

    Raises:
        TypeError: it has another type, or is an object of torchjd with a state, which cannot be saved.
    """
    if isinstance(given, GramianAggregator | VectorAggregator):
        return given
    from torchjd import aggregation
    from torchjd._mixins import Stateful

    if isinstance(given, Stateful):
        raise TypeError(
            f"{type(given).__name__} of torchjd has a state that it cannot save. Set its name as `aggregation` "
            f"instead: {', '.join(AGGREGATORS)}."
        )
    if isinstance(given, aggregation.GramianWeightedAggregator):
        return Weighting(given.gramian_weighting)
    if isinstance(given, aggregation.WeightedAggregator):
        return Weighting(given.weighting, on_matrix=True)
    if isinstance(given, aggregation.Weighting):
        return Weighting(given)
    raise TypeError(
        "`aggregator` should be a GramianAggregator or VectorAggregator of hf_multitask.aggregation, or a weighting of "
        f"torchjd. Found {type(given).__name__}."
    )
