"""The rows of a pass as one stream of tokens, without padding, and its states as those of rows again.

Only the backbone runs on the stream: heads read what they read without it, rows of padded states.

Legend: B rows below branches, U of those above them, M of one branch, L tokens of the longest row, T of all rows, D
hidden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from .aliases import Open, Settings, Values
from .forks import Fork
from .inputs import OFFSET_POSITIONS
from .keywords import parameter_names
from .layers import drops_layers, pooled
from .native import reading_part
from .routing import States
from .shared import SharedModel
from .varlen import VARLEN, boundaries, no_mask


def why_not_packed(model: SharedModel) -> str | None:
    """Why the backbone of a model cannot read a stream, in words; None if nothing is known against it."""
    part: Open = reading_part(model.backbone)
    config = model.config.backbone_config
    names = parameter_names(part.forward)
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if not {"input_ids", "position_ids", "attention_mask"} <= {*names}:
        return "it takes no positions of tokens"
    # The families that have FlashAttention hand the boundaries of rows to their attention.
    if not (getattr(part, "_supports_flash_attn", False) and part._can_set_attn_implementation()):
        return "its attention is its own, and not one of the AttentionInterface"
    if drops_layers(config):
        return "it leaves out layers at random"
    if model.routing.tasks:
        return "tasks have adapters of their own (task_lora), which read rows"
    return None


@dataclass(frozen=True)
class Packed:
    """Where the tokens of B rows are in a stream.

    Args:
        mask_BL: which tokens are there.
        place_T: places of the tokens among those of all rows, padding included.
        bounds: where each row begins in the stream, and the last ends, (B + 1,), int32.
    """

    mask_BL: torch.Tensor
    place_T: torch.Tensor
    bounds: torch.Tensor

    @classmethod
    def of(cls, mask_BL: torch.Tensor) -> "Packed":
        """The stream of the tokens of a mask."""
        mask_BL = mask_BL.bool()
        ends_B = mask_BL.sum(1).cumsum(0)
        return cls(mask_BL, mask_BL.flatten().nonzero()[:, 0], nn.functional.pad(ends_B, (1, 0)).int())

    @property
    def tokens(self) -> int:
        """T."""
        return self.place_T.shape[0]

    def flat(self, values_BL: torch.Tensor) -> torch.Tensor:
        """(B, L) to (1, T)."""
        return values_BL.flatten()[self.place_T].unsqueeze(0)

    def padded(self, states_1TD: torch.Tensor) -> torch.Tensor:
        """(1, T, D) to (B, L, D), with zeros for padding."""
        states_TD, (rows, length) = states_1TD[0], self.mask_BL.shape
        whole = states_TD.new_zeros(rows * length, states_TD.shape[1]).index_copy(0, self.place_T, states_TD)
        return whole.view(rows, length, -1)

    def inputs(self, part: Open, config: PreTrainedConfig, given: Settings) -> Values:
        """The inputs of a backbone for the stream, from those for the rows."""
        names, ids_BL = parameter_names(part.forward), cast(torch.Tensor, given["input_ids"])
        flat = {key: self.flat(value) if isinstance(value, torch.Tensor) else value for key, value in given.items()}
        if given.get("position_ids") is None:
            flat["position_ids"] = self.flat(positions(config, ids_BL))
        if "token_type_ids" in names and getattr(config, "type_vocab_size", None):
            flat.setdefault("token_type_ids", torch.zeros_like(flat["input_ids"]))
        if "use_cache" in names:
            flat["use_cache"] = False
        flat["attention_mask"] = no_mask(ids_BL.device)
        return {**flat, **boundaries(self.bounds, ids_BL.shape[1])}

    def states(
        self, base: Open, read: Open, layers: list[torch.Tensor | None] | None, forked: "PackedFork | None"
    ) -> tuple[States, list[torch.Tensor | None] | None]:
        """What the backbone has made of the stream as that of rows; a pooler reads those.

        Args:
            base: the backbone.
            read: its output.
            layers: states of layers beside those in the output, if any.
            forked: how the stream is divided between branches; None without branches.
        """
        above = None if forked is None else forked.above

        def rows(states_1TD: torch.Tensor | None) -> torch.Tensor | None:
            if states_1TD is None:
                return None
            return (self if above is None or states_1TD.shape[1] == self.tokens else above).padded(states_1TD)

        hidden = (above or self).padded(read.last_hidden_state)
        pooler_output = pooled(base, hidden) if getattr(base, "pooler", None) is not None else None
        shown = cast("tuple[torch.Tensor, ...]", tuple(map(rows, getattr(read, "hidden_states", None) or ())))
        states = States(last_hidden_state=hidden, pooler_output=pooler_output, hidden_states=shown or None)
        return states, None if layers is None else list(map(rows, layers))


def positions(config: PreTrainedConfig, ids_BL: torch.Tensor) -> torch.Tensor:
    """The positions that a backbone gives to tokens by itself, (B, L)."""
    if config.model_type in OFFSET_POSITIONS:
        there_BL = ids_BL.ne(config.pad_token_id).long()
        return there_BL.cumsum(1) * there_BL + config.pad_token_id
    return torch.arange(ids_BL.shape[1], device=ids_BL.device).expand_as(ids_BL)


def can_pack(part: Open, given: Settings) -> bool:
    """Whether a stream has all inputs of a pass, which are ids and others of tokens, and the attention takes it."""
    ids = given.get("input_ids")
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or ids is None or given.get("output_attentions"):
        return False
    if part.config._attn_implementation != VARLEN:
        return False
    return all(value.shape == ids.shape for value in given.values() if isinstance(value, torch.Tensor))


class PackedFork:
    """Which tokens of a stream each branch reads; see :class:`Fork`, of which it has what a layer asks.

    Args:
        fork: which rows each branch reads.
        below: the stream below the branches.
    """

    def __init__(self, fork: Fork, below: Packed) -> None:
        self.branches, self.idle, self.blocks = fork.branches, fork.idle, fork.blocks
        self.rows_above = fork.rows_above
        self.below = below
        self.above = below if fork.rows_above == fork.rows else Packed.of(fork.above(below.mask_BL))
        self._first = int(below.bounds[1]) if fork.idle else 0
        self._bounds = [below.bounds] * len(fork.branches)
        self._tokens = replace(fork, rows=below.tokens, rows_above=self.above.tokens, heads=1)
        if fork.below_M is not None:
            below_M = tuple(_tokens(below.bounds, rows_M) for rows_M in fork.below_M)
            above_M = tuple(_tokens(self.above.bounds, rows_M) for rows_M in fork.above_M)
            place_U = torch.empty_like(torch.cat(above_M))
            place_U[torch.cat(above_M)] = torch.arange(place_U.shape[0], device=place_U.device)
            self._tokens = replace(self._tokens, below_M=below_M, above_M=above_M, place_U=place_U)
            lengths = below.bounds.diff()
            self._bounds = [nn.functional.pad(lengths[own].cumsum(0), (1, 0)).int() for own in fork.below_M]

    def hidden(self, states: torch.Tensor) -> Sequence[torch.Tensor]:
        """The states that each branch reads, (1, T, D) each."""
        return [one.unsqueeze(0) for one in self._tokens.hidden(states[0])]

    def first(self, states: torch.Tensor) -> torch.Tensor:
        """Those that an idle branch reads: of the first row."""
        return states[:, : self._first]

    def part(self, number: int | None, value: Open, length: int) -> Open:
        """What a branch reads of an input of a layer; of ``number`` None, an idle branch, those of the first row."""
        if isinstance(value, Cache):
            return None
        if isinstance(value, tuple | list):
            return type(value)(self.part(number, one, length) for one in value)
        if isinstance(value, Mapping):
            own = self.below.bounds[:2] if number is None else self._bounds[number]
            changed = {key: own for key in ("cu_seq_lens_q", "cu_seq_lens_k") if key in value}
            return {key: self.part(number, one, length) for key, one in value.items()} | changed
        if not isinstance(value, torch.Tensor) or value.dim() < 2 or value.shape[0] != 1:
            return value
        if value.shape[1] not in (self.below.tokens, self.above.tokens):
            return value
        if number is None:
            return value[:, : self._first]
        below = value.shape[1] == self.below.tokens
        places_M = self._tokens.below_M if below else self._tokens.above_M
        return self._tokens.rows_of_branch(number, value[0], places_M).unsqueeze(0)

    def joined(self, outputs: Sequence[Open], length: int) -> Open:
        """The outputs of the branches as those of one layer, (1, T, D)."""
        first = outputs[0]
        if isinstance(first, tuple):
            return tuple(self.joined(ones, length) for ones in zip(*outputs, strict=True))
        if not isinstance(first, torch.Tensor):
            return first
        whole = torch.cat(list(outputs), 1)
        return whole if self._tokens.place_U is None else whole[:, self._tokens.place_U]


def _tokens(bounds: torch.Tensor, rows_M: torch.Tensor) -> torch.Tensor:
    """The places in a stream of the tokens of some rows, one row behind the other."""
    lengths_M, starts_M = bounds.diff()[rows_M].long(), bounds[rows_M].long()
    shifts_M = starts_M - (lengths_M.cumsum(0) - lengths_M)
    shifts = shifts_M.repeat_interleave(lengths_M)
    return shifts + torch.arange(shifts.shape[0], device=bounds.device)
