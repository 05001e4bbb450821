"""Parameters that stand in for a model's own: the same numbers, without the hooks that hang on those."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def aliased(module: nn.Module, aliases: dict[nn.Parameter, nn.Parameter]) -> Iterator[None]:
    """Within it, others stand in for the parameters of a module that train, and take their gradients.

    DistributedDataParallel notes by its hooks what has a gradient, and would wait for one of the next step that never
    comes.

    Args:
        module: whose parameters they are.
        aliases: by parameter, what stands in for it; filled here, and the same the next time.
    """
    places = [
        (owner._parameters, name, own)
        for owner in module.modules()
        for name, own in owner._parameters.items()
        if own is not None and own.requires_grad
    ]
    for table, name, own in places:
        if own not in aliases or aliases[own].data_ptr() != own.data_ptr():
            aliases[own] = nn.Parameter(own.detach())
        table[name] = aliases[own]
    try:
        yield
    finally:
        for table, name, own in places:
            table[name] = own
