"""Models for tests, each built once: what many tests begin with is copied from the first of its kind."""

import json
import sys
from copy import deepcopy

import torch

from hf_multitask import MultiTaskModel

_BUILT: dict[str, tuple[MultiTaskModel, torch.Tensor]] = {}


def build(path, tasks, seed=1, **kwargs) -> MultiTaskModel:
    """``MultiTaskModel.from_backbone`` after a seed, with the state of the random generator that it leaves."""
    try:
        said = {name: [type(task).__module__, type(task).__qualname__, task.to_dict()] for name, task in tasks.items()}
        missing = sorted(name for name, module in sys.modules.items() if module is None)  # as an extra in a test
        key = f"{torch.get_default_dtype()} {missing} {json.dumps([str(path), seed, said, kwargs])}"
    except (AttributeError, TypeError):  # with what is no JSON, such as a configuration of an adapter
        torch.manual_seed(seed)
        return MultiTaskModel.from_backbone(path, tasks=tasks, **kwargs)
    if key not in _BUILT:
        torch.manual_seed(seed)
        _BUILT[key] = MultiTaskModel.from_backbone(path, tasks=tasks, **kwargs), torch.get_rng_state()
    model, state = _BUILT[key]
    torch.set_rng_state(state)
    return deepcopy(model)
