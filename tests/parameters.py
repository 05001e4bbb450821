"""Parameters of which some run always, and the others with ``-m slow``."""

import pytest


def few(cases, quick, ids=None):
    """The cases of a parametrized test, slow but for some that are named, by their ids where there are any.

    Raises:
        ValueError: a name is of no case, so that nobody would miss the case that it was of.
    """
    cases = list(cases)
    names = cases if ids is None else list(ids)
    unknown = [name for name in quick if name not in names]
    if unknown:
        raise ValueError(f"There is no case {unknown[0]!r}. The cases are {names}.")
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if name in quick else pytest.mark.slow,
            id=None if ids is None else name,
        )
        for case, name in zip(cases, names, strict=True)
    ]
