"""From a text, or a pair of texts, to the inputs of the backbone."""

import inspect
from typing import Any

from transformers import BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase

from .native import backbone_class

# Position ids of these families start behind the padding id.
_OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "roberta-prelayernorm",
    "xmod",
}

_MARGIN = 128  # tokens behind the last one kept: words are cut to pieces alike whatever stands so far behind them


def text_columns(task: dict[str, Any]) -> tuple[str, str | None]:
    """The columns a task reads its text, and its second text where it takes pairs, from."""
    return task.get("text_column") or task["tokens_column"], task.get("text_pair_column")


def as_text(value: object) -> str:
    """A string as it is, a list of words joined by single spaces.

    Raises:
        TypeError: the value is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return " ".join(value)
    raise TypeError(f"a text should be a string or a list of words, and {value!r} is a {type(value).__name__}")


def longest_input(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, max_length: int | None = None
) -> int | None:
    """How many tokens a row may have, special ones included; None where neither tokenizer nor backbone set a limit."""
    limits = [max_length] if max_length else []
    if tokenizer.model_max_length < 1e9:
        limits.append(tokenizer.model_max_length)
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        if config.model_type in _OFFSET_POSITIONS:
            positions -= (config.pad_token_id or 0) + 1
        elif config.model_type == "mpnet":
            positions -= 2  # behind 1, whatever the padding id
        limits.append(positions)
    return min(limits) if limits else None


def input_names(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> list[str]:
    """What the tokenizer makes and the backbone takes: many families take no ``token_type_ids``."""
    taken = inspect.signature(backbone_class(config).forward).parameters
    return [name for name in tokenizer.model_input_names if name in taken]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    pairs: list[str] | None,
    max_length: int | None,
    **kwargs: Any,
) -> BatchEncoding:
    """Tokenise a list of texts or of pairs, cut to ``max_length`` tokens.

    An empty text becomes the end-of-text token where the tokenizer would make no token of it at all.
    """
    if not tokenizer.num_special_tokens_to_add(pairs is not None):
        texts = [text or tokenizer.eos_token or tokenizer.pad_token or "" for text in texts]
    if max_length is None:
        return tokenizer(texts, pairs, **kwargs)
    texts = [_shortened(tokenizer, text, max_length) for text in texts]
    pairs = None if pairs is None else [_shortened(tokenizer, pair, max_length) for pair in pairs]
    return tokenizer(texts, pairs, truncation=True, max_length=max_length, **kwargs)


def _shortened(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> str:
    """A very long text, up to well behind its last token that can be kept.

    A fast tokenizer keeps every combination of what it cuts off from a pair, which two long texts make gigabytes of.
    Where a pair of such texts has room for an odd number of tokens, the odd one may go to the other text than without.
    """
    if not tokenizer.is_fast or len(text) <= 8 * max_length:
        return text
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    kept = max_length + _MARGIN
    if len(offsets) <= kept:
        return text
    return text[: offsets[kept][1]] if tokenizer.truncation_side == "right" else text[offsets[-kept][0] :]


def cut_rows(
    tokenizer: PreTrainedTokenizerBase,
    encoding: BatchEncoding,
    texts: list[str],
    pairs: list[str] | None,
    max_length: int | None,
) -> list[bool]:
    """Which rows of what :func:`encode` has made of these texts were longer than ``max_length``."""
    if encoding.encodings is not None:
        return [bool(one.overflowing) for one in encoding.encodings]
    # A slow tokenizer does not tell, so rows that fill the limit are tokenised again, whole.
    return [
        len(ids) == max_length
        and len(tokenizer(text, None if pairs is None else pairs[row], verbose=False)["input_ids"]) > max_length
        for row, (ids, text) in enumerate(zip(encoding["input_ids"], texts, strict=True))
    ]


def first_tokens(encoding: BatchEncoding, row: int, starts: list[int]) -> list[int | None]:
    """For each word of a row, the index of its first token.

    Args:
        encoding: of a fast tokenizer, with ``offset_mapping``.
        row: which row of it.
        starts: at which character of the row's text each word begins, in rising order.

    Returns:
        One index a word; None where the word was cut off, or has no token at all.
    """
    found: list[int | None] = [None] * len(starts)
    word = -1
    for token, (sequence, (begin, end)) in enumerate(
        zip(encoding.sequence_ids(row), encoding["offset_mapping"][row], strict=True)
    ):
        if sequence != 0 or begin == end:
            continue
        # A token belongs to the word of its last character: some tokenizers count the space before it in.
        while word + 1 < len(starts) and end > starts[word + 1]:
            word += 1
        if word >= 0 and found[word] is None:
            found[word] = token
    return found
