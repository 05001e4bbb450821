"""The stock classes of a backbone's family: their heads, taken whole, over states that another module computed."""

import inspect
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .routing import States


class SharedStates(nn.Module):
    """Stands in a stock model where its base model was and hands on the states that it is given.

    A stock model passes ``inputs_embeds`` to its base model untouched; here that argument carries the output which
    the shared backbone has computed for these rows, and the stock forward takes over from there.
    """

    def forward(self, *args: Any, inputs_embeds: States, **kwargs: Any) -> States:  # noqa: ARG002
        """Return ``inputs_embeds``."""
        return inputs_embeds


def stock_class(config: PreTrainedConfig, auto_class: Any) -> type[PreTrainedModel]:
    """The family's own class for a task, such as ``BertForTokenClassification``.

    Raises:
        ValueError: the family has none.
    """
    try:
        return auto_class._model_mapping[type(config)]
    except KeyError:
        raise ValueError(
            f"The backbone family '{config.model_type}' has no class for {auto_class.__name__}. "
            "Choose another backbone, or set pooling to 'cls', 'mean' or 'last'."
        ) from None


def stock_head(
    config: PreTrainedConfig,
    auto_class: Any,
    *,
    num_labels: int,
    problem_type: str | None,
) -> tuple[PreTrainedModel, bool]:
    """Build the family's stock model for a task without its base model.

    Returns:
        The stock model with :class:`SharedStates` as its base, weights not yet set, and whether its own base model
        has a pooler, which the shared backbone then needs as well.
    """
    head_config: Any = deepcopy(config)
    head_config.num_labels = num_labels
    head_config.problem_type = problem_type
    device = torch.get_default_device()
    with torch.device("meta"):
        head = stock_class(config, auto_class)(head_config)
    needs_pooler = getattr(head.base_model, "pooler", None) is not None
    setattr(head, head.base_model_prefix, SharedStates())
    if device.type != "meta":
        head.to_empty(device=device)
    return head, needs_pooler


def backbone_kwargs(config: PreTrainedConfig, *, needs_pooler: bool) -> dict[str, Any]:
    """Arguments that leave out a pooler which no head reads, where the family lets one say so.

    An unused pooler has no gradient, and parameters without gradient break distributed training.
    """
    model_class: Any = AutoModel._model_mapping[type(config)]
    takes = "add_pooling_layer" in inspect.signature(model_class).parameters
    return {"add_pooling_layer": needs_pooler} if takes else {}
