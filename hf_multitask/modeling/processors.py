"""The tokenizer and the feature extractor in what a trainer, a pipeline or an export is given."""

from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .aliases import Open, Settings


@dataclass(frozen=True)
class Processors:
    """A tokenizer and a feature extractor, for readers of texts, of recordings, and of recordings with transcripts."""

    tokenizer: Open
    feature_extractor: Open

    def to_dict(self) -> Settings:
        """The settings of the feature extractor; the tokenizer is compared by its vocabulary."""
        return self.feature_extractor.to_dict()


def tokenizer_of(given: object) -> PreTrainedTokenizerBase | None:
    """The tokenizer of what a trainer or a pipeline is given: itself, or the one that it holds; None without one."""
    return given if isinstance(given, PreTrainedTokenizerBase) else getattr(given, "tokenizer", None)


def with_padding(tokenizer: Open, config: PreTrainedConfig) -> Open:
    """A tokenizer that pads as a backbone has it: with the token of its configuration, else that of the end of a text.

    It is changed where it has no padding token, as GPT-2's has none.
    """
    if tokenizer.pad_token is None:
        pad = config.get_text_config().pad_token_id
        tokenizer.pad_token = tokenizer.eos_token if pad is None else tokenizer.convert_ids_to_tokens(pad)
    return tokenizer


def stand_in(tokenizer: Open) -> str:
    """What is read in place of an empty text by a tokenizer that adds no token to it."""
    return tokenizer.eos_token or tokenizer.pad_token or ""


def agree_on_padding(model: Open, given: object) -> None:
    """See that a model and the tokenizer of a pipeline, where there is one, pad with the same token."""
    tokenizer, config = tokenizer_of(given), model.config.backbone_config
    if tokenizer is not None:
        pad = with_padding(tokenizer, config).pad_token_id
        if config.get_text_config().pad_token_id is None and pad is not None:
            model.set_pad_token_id(pad)


def extractor_of(given: object) -> Open:
    """The feature extractor of what a trainer or a pipeline is given: itself, or the one that it holds.

    Raises:
        ValueError: it is not there.
    """
    found = getattr(given, "feature_extractor", None) or given
    if not callable(found) or not isinstance(getattr(found, "sampling_rate", None), int):
        raise ValueError(
            f"A task that reads audio needs a feature extractor, and {type(given).__name__} is not one and has none. "
            "Give the feature extractor of the backbone."
        )
    return found
