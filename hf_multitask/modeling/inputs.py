"""From a text, or a pair of texts, to the inputs of the backbone."""

from typing import Any

from transformers import BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase

# Position ids of these families start behind the padding id.
_OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "longformer",
    "roberta-prelayernorm",
}


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
        limits.append(positions)
    return min(limits) if limits else None


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    pairs: list[str] | None,
    max_length: int | None,
    **kwargs: Any,
) -> BatchEncoding:
    """Tokenise a list of texts or of pairs, cut to ``max_length`` tokens."""
    return tokenizer(texts, pairs, truncation=max_length is not None, max_length=max_length, **kwargs)


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
