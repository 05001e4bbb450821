"""The stock classes of a backbone's family: their heads, taken whole, over states that another module computed."""

import inspect
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from .routing import States

# By class and configuration, stock heads on the meta device, with what stock_head says of them.
_BUILT: dict[str, tuple[PreTrainedModel, bool]] = {}
_MOST_BUILT = 16


class SharedStates(nn.Module):
    """Stands in a stock model where its base model was and hands on the states that it is given.

    A stock model passes ``inputs_embeds`` to its base model untouched; here that argument carries the output which
    the shared backbone has computed for these rows, and the stock forward takes over from there.
    """

    def forward(self, *args: Any, inputs_embeds: States, **kwargs: Any) -> States:  # noqa: ARG002
        """Return ``inputs_embeds``."""
        return inputs_embeds

    def get_input_embeddings(self) -> None:
        """None: the embeddings are the shared backbone's."""


def backbone_class(config: PreTrainedConfig) -> Any:
    """The family's class without a head, such as ``BertModel``."""
    return AutoModel._model_mapping[type(config)]


def stock_class(config: PreTrainedConfig, auto_class: Any) -> type[PreTrainedModel]:
    """The family's own class for a task, such as ``BertForTokenClassification``.

    Raises:
        ValueError: the family has none.
    """
    try:
        return auto_class._model_mapping[type(config)]
    except KeyError:
        pools = auto_class is AutoModelForSequenceClassification
        raise ValueError(
            f"The backbone family '{config.model_type}' has no class for {auto_class.__name__}. Choose another backbone"
            + (", or set pooling to 'cls', 'mean' or 'last'." if pools else ".")
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
    # A stock model brings all layers of its base model, which takes its time: tasks alike share one to copy from.
    key = f"{auto_class.__name__} {head_config._attn_implementation} {head_config.to_json_string(use_diff=False)}"
    if key not in _BUILT:
        with torch.device("meta"):
            built = stock_class(config, auto_class)(head_config)
        needs_pooler = getattr(built.base_model, "pooler", None) is not None
        setattr(built, built.base_model_prefix, SharedStates())
        if len(_BUILT) == _MOST_BUILT:
            _BUILT.pop(next(iter(_BUILT)))
        _BUILT[key] = built, needs_pooler
    head, needs_pooler = _BUILT[key]
    with torch.device("meta"):
        head = deepcopy(head)
    if device.type != "meta":
        head.to_empty(device=device)
    return head, needs_pooler


def backbone_kwargs(config: PreTrainedConfig, *, needs_pooler: bool) -> dict[str, Any]:
    """Arguments that leave out a pooler which no head reads, where the family lets one say so.

    An unused pooler has no gradient, and parameters without gradient break distributed training.
    """
    takes = "add_pooling_layer" in inspect.signature(backbone_class(config)).parameters
    return {"add_pooling_layer": needs_pooler} if takes else {}


def asked_inputs(
    config: PreTrainedConfig, heads: Iterable[nn.Module], input_ids: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Inputs (B, L) that the stock models of some heads make for their base model by themselves.

    Longformer's sequence classifier gives the first token global attention. One backbone pass serves all heads, so a
    model that has such a head gives it always, whichever heads run: a token classifier beside it sees it as well. A
    token classifier alone has local attention only, as its stock class.
    """
    if config.model_type != "longformer" or input_ids is None:
        return {}
    classifier = stock_class(config, AutoModelForSequenceClassification)
    if not any(isinstance(head, classifier) for head in heads):
        return {}
    mask = torch.zeros_like(input_ids)
    mask[:, 0] = 1
    return {"global_attention_mask": mask}
