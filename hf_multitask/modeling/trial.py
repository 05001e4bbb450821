"""Whether a backbone does what the tasks need of it, tried when a model is built."""

from typing import Any

import torch

from .precision import fitted
from .routing import States

_FAILS = (AttributeError, IndexError, KeyError, TypeError)  # whatever the numbers are
_ROWS, _TOKENS = 1, 16  # several rows would ask for a padding token, which some families have none of


def check_own_code(name: str, config: Any, backbone: Any = None) -> None:
    """See that a backbone's classes are there wherever a saved model is loaded, and did not come with its files.

    Args:
        name: of the backbone.
        config: its configuration.
        backbone: itself, where it is built.

    Raises:
        ValueError: they came with its files.
    """
    for part in (config, backbone):
        if type(part).__module__.split(".")[0] == "transformers_modules":
            raise ValueError(
                f"The backbone '{name}' runs code of its own ({type(part).__name__}), which a saved multi-task model "
                "does not bring along, so it would never load again. Take a backbone of a family that Transformers "
                f"has, or leave trust_remote_code out if it knows '{config.model_type}'."
            )


def check_family(model: Any) -> None:
    """Run each type of head of a model once, on states without content.

    Args:
        model: a multi-task model with its weights.

    Raises:
        ValueError: the stock class of a task needs of the family's backbone what other families do not have.
    """
    config = model.config.backbone_config
    size = getattr(config.get_text_config(), "hidden_size", None)
    firsts = {type(head): name for name, head in reversed(model.heads.items()) if head.language_model is None}
    if not isinstance(size, int):
        return
    kwargs = {"device": model.backbone.device, "dtype": model.backbone.dtype}
    hidden_NLD = torch.zeros(_ROWS, _TOKENS, size, **kwargs)
    ids_NL = torch.ones(_ROWS, _TOKENS, dtype=torch.long, device=kwargs["device"])
    for kind, name in firsts.items():
        states = States(last_hidden_state=hidden_NLD, pooler_output=hidden_NLD[:, 0])
        try:
            with torch.no_grad():
                model.heads[name](fitted(states, model.heads[name]), ids_NL, torch.ones_like(ids_NL))
        except _FAILS as problem:
            raise ValueError(
                f"The backbone family '{config.model_type}' is not supported for task '{name}': the stock class of "
                f"{model.config.task(name)['type']} reads more of {type(model.backbone.base_model).__name__} than the "
                f"states of its last layer ({kind.__name__}: {' '.join(str(problem).split())}). Choose another "
                "backbone."
            ) from problem
