"""The tokenizer and the feature extractor in what a trainer, a pipeline or an export is given."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

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
