"""What all parts of the multi-task model have."""

from torch import nn
from transformers import PreTrainedModel

from .adapter_rows import Routing
from .aliases import Values
from .config import MultiTaskConfig
from .subsampler import Subsampler


class SharedModel(PreTrainedModel):
    """A backbone that several heads share, as the parts of :class:`MultiTaskModel` know it."""

    config: MultiTaskConfig
    backbone: PreTrainedModel
    heads: nn.ModuleDict
    routing: Routing
    subsampler: Subsampler | None
    # Whether the backbone reads the rows of a batch as one stream of tokens; see :mod:`packing`.
    packs = False


def adapter_settings(model: SharedModel) -> Values:
    """The adapters of a model's configuration; empty if it has none."""
    return model.config.adapters or {}
