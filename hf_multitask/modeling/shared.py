"""What all parts of the multi-task model have."""

from collections.abc import Iterable, Sequence

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
    _frozen: Sequence[nn.Parameter] = ()

    def freeze_parameters(self, parameters: Iterable[nn.Parameter]) -> None:
        """Turn off the gradients of weights until the next trainer is made, or the model changes.

        Those that are off already stay off then, too.
        """
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        self._frozen = [*self._frozen, *trained]

    def unfreeze_parameters(self) -> None:
        """Turn on again the gradients that :meth:`freeze_parameters` has turned off, and no others."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = ()


def adapter_settings(model: SharedModel) -> Values:
    """The adapters of a model's configuration; empty if it has none."""
    return model.config.adapters or {}
