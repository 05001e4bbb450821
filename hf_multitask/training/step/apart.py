"""Passes that leave no trace in training."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import nn


def random_state_kept(device: torch.device) -> AbstractContextManager[None]:
    """Within it, draws of torch move no random state of the CPU or of a device."""
    if device.type in ("cpu", "mps"):
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


@contextmanager
def undone(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it, passes leave no trace: random states, buffers and gradients are restored, which are None inside.

    Args:
        model: that runs.
        device: of the process.
    """
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    for parameter in gradients:
        parameter.grad = None
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    drawn = random.getstate(), np.random.get_state()  # some models of speech draw their masks from the latter
    with random_state_kept(device):
        try:
            yield
        finally:
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
            with torch.no_grad():
                for name, value in model.named_buffers():
                    value.copy_(buffers[name])


@contextmanager
def aliased(module: nn.Module, aliases: dict[nn.Parameter, nn.Parameter]) -> Iterator[None]:
    """Within it, other parameters replace those of a module that train, and receive their gradients.

    DistributedDataParallel notes by its hooks what has a gradient, and would wait for one of the next step that never
    comes.

    Args:
        module: whose parameters they are.
        aliases: by parameter, its replacement; filled here, and the same the next time.
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
