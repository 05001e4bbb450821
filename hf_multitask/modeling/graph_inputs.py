"""The inputs of an ONNX graph: tokens, or what a speech encoder reads, and rows of them to trace and compare it on.

Legend: B rows, L tokens, S samples or frames of the longest row, M bands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .aliases import Open
from .inputs import input_names
from .readers import Reader
from .sound import samples_of
from .speech import AudioReader, FrameReader
from .speech_to_text import SpectrogramReader

_TOKENS = ("input_ids", "attention_mask", "token_type_ids")

# The lengths of some rows to the inputs, padded on the right.
Sample = Callable[[Sequence[int]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class GraphInputs:
    """The inputs of a graph.

    Args:
        names: in their order.
        axes: the names of the axes of any length, by number.
        unit: what the lengths of :attr:`sample` are counted in.
        sample: rows of some lengths.
        unrolled: whether the graph is recorded by running the model, as its shapes are beyond torch.export.
    """

    names: list[str]
    axes: dict[int, str]
    unit: str
    sample: Sample
    unrolled: bool


def graph_inputs(reader: Reader, config: PreTrainedConfig, given: object = None) -> GraphInputs:
    """The inputs that the tasks of a graph read.

    Args:
        reader: of the tasks.
        config: of the backbone.
        given: tokenizer, feature extractor or processor; of texts, the inputs are then the ones that it makes.

    Raises:
        ValueError: it does not make what the tasks read.
    """
    if not isinstance(reader, AudioReader):
        return GraphInputs(
            _token_names(config, given), {0: "batch", 1: "sequence"}, "tokens", partial(_tokens, config), False
        )
    if given is not None:
        reader.processor(given)
    names, axes = list(reader.input_names), {0: "batch", 1: "sequence"}
    if isinstance(reader, SpectrogramReader):
        return GraphInputs(names, {0: "batch"}, "frames", partial(_spectrograms, config), True)
    if isinstance(reader, FrameReader):
        return GraphInputs(names, axes, "frames", partial(_sounds, names, (config.feature_projection_input_dim,)), True)
    return GraphInputs(names, axes, "frames", partial(_waves, names, config), True)


def _token_names(config: PreTrainedConfig, tokenizer: Open) -> list[str]:
    """Those that the tokenizer makes, or the usual ones of the family without one."""
    if tokenizer is not None:
        return input_names(tokenizer, config)
    taken = input_names(PreTrainedTokenizerBase(model_input_names=list(_TOKENS)), config)
    several = (getattr(config, "type_vocab_size", None) or 0) > 1
    return [name for name in taken if name != "token_type_ids" or several]


def _tokens(config: PreTrainedConfig, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    """Any tokens (B, L), the last one of a row the end of the text."""
    config = config.get_text_config()
    special = {getattr(config, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos")}
    words = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    there_BL = is_there(lengths)
    ids_BL = words[torch.randint(len(words), there_BL.shape, generator=torch.Generator().manual_seed(0))]
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    if end is not None:
        ids_BL[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = end
    return {
        "input_ids": ids_BL.masked_fill(~there_BL, config.pad_token_id or 0),
        "attention_mask": there_BL.long(),
        "token_type_ids": torch.zeros(there_BL.shape, dtype=torch.long),
    }


def _waves(names: Sequence[str], config: PreTrainedConfig, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    """Noise (B, S) of some frames of the backbone."""
    return _sounds(names, (), [samples_of(config, length) for length in lengths])


def _sounds(names: Sequence[str], width: Sequence[int], lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    """Noise (B, S, ...) and its mask (B, S)."""
    there_BS = is_there(lengths)
    noise = _noise(*there_BS.shape, *width)
    values = noise.masked_fill(~there_BS.view(*there_BS.shape, *(1 for _ in width)), 0)
    return dict(zip(names, (values, there_BS.long()), strict=True))


def _spectrograms(config: Open, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    """Noise (B, M, S), of the length that the encoder of Whisper has."""
    return {"input_features": _noise(len(lengths), config.num_mel_bins, 2 * config.max_source_positions)}


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def is_there(lengths: Sequence[int]) -> torch.Tensor:
    """What is no padding (B, L), in rows of some lengths."""
    return torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
