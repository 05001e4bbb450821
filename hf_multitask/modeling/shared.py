"""What all parts of the multi-task model have."""

from torch import nn
from transformers import PreTrainedModel

from .adapter_rows import Routing
from .config import MultiTaskConfig


class SharedModel(PreTrainedModel):
    """A backbone that several heads share, as the parts of :class:`MultiTaskModel` know it."""

    config: MultiTaskConfig
    backbone: PreTrainedModel
    heads: nn.ModuleDict
    routing: Routing
