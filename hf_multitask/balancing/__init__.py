"""Balancers, which compute the weights of the losses of tasks. They need torch and torchjd only."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from ._balancer import Balancer
from ._coba import CoBa
from ._dwa import DWA
from ._famo import FAMO
from ._fixed import Fixed
from ._geometric_mean import GeometricMean
from ._gradnorm import GradNorm
from ._imtl_l import IMTLL
from ._random import Random
from ._scale import Scale
from ._stch import STCH
from ._uncertainty import Uncertainty
from ._uniform import Uniform

BALANCING: dict[str, type[Balancer]] = {
    "uniform": Uniform,
    "fixed": Fixed,
    "scale": Scale,
    "uncertainty": Uncertainty,
    "imtl_l": IMTLL,
    "dwa": DWA,
    "famo": FAMO,
    "geometric_mean": GeometricMean,
    "stch": STCH,
    "random": Random,
    "gradnorm": GradNorm,
    "coba": CoBa,
}
# Names in the papers.
_ALSO = {"uw": "uncertainty", "rlw": "random", "gls": "geometric_mean", "imtl-l": "imtl_l", "equal": "uniform"}
NONE = "none"


def build_balancer(name: str, kwargs: Mapping[str, Any] | None) -> Balancer | None:
    """The balancer with a name and arguments; None for ``none``.

    Raises:
        ValueError: the name or an argument is unknown or invalid.
    """
    known = [NONE, *BALANCING]
    if name not in known:
        meant = _ALSO.get(str(name).lower()) or next(iter(get_close_matches(str(name).lower(), known, n=1)), None)
        raise ValueError(
            f"Parameter `balancing` should be one of {', '.join(known)}. Found `balancing = {name!r}`."
            + (f" Did you mean '{meant}'?" if meant else "")
        )
    if name == NONE:
        if kwargs:
            raise ValueError("Parameter `balancing_kwargs` needs a balancing. Set one, or remove it.")
        return None
    taken = list(inspect.signature(BALANCING[name]).parameters)
    for argument in kwargs or {}:
        if argument not in taken:
            close = get_close_matches(str(argument), taken, n=1)
            raise ValueError(
                f"The arguments of balancing '{name}' are {', '.join(taken)}. Found '{argument}' in balancing_kwargs."
                + (f" Did you mean '{close[0]}'?" if close else " Remove it.")
            )
    return BALANCING[name](**(kwargs or {}))


__all__ = [
    "BALANCING",
    "DWA",
    "FAMO",
    "IMTLL",
    "NONE",
    "STCH",
    "Balancer",
    "CoBa",
    "Fixed",
    "GeometricMean",
    "GradNorm",
    "Random",
    "Scale",
    "Uncertainty",
    "Uniform",
    "build_balancer",
]
