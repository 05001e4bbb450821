"""From a text, or a pair of texts, to the inputs of the backbone."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from .config import close_match
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
    """The columns a task reads its text, and its second text where it takes pairs, from; "text" where it names none."""
    names = ("text_column", "tokens_column", "source_column", "context_column")
    return next((task[name] for name in names if task.get(name)), "text"), task.get("text_pair_column")


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
    if positions and positions > 0:  # XLNet says -1
        if config.model_type in _OFFSET_POSITIONS:
            positions -= (config.pad_token_id or 0) + 1
        elif config.model_type == "mpnet":
            positions -= 2  # behind 1, whatever the padding id
        limits.append(positions)
    return min(limits) if limits else None


def input_names(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> list[str]:
    """What the tokenizer makes and the backbone takes: many families take no ``token_type_ids``."""
    taken = set(inspect.signature(backbone_class(config).forward).parameters)
    if getattr(config, "type_vocab_size", None) == 1:  # the second text of a pair has no type of its own
        taken -= {"token_type_ids"}
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


class Encoder:
    """Texts to the inputs of a backbone, within its limits.

    Args:
        tokenizer: the backbone's.
        config: the backbone's configuration.
        task: the task's dict, of which ``max_length`` and ``language`` count.

    Raises:
        ValueError: the task has a language, and the backbone does not know it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, task: Mapping[str, Any] | None = None
    ) -> None:
        task = task or {}
        self.tokenizer, self.config = tokenizer, config
        self.limit = longest_input(tokenizer, config, task.get("max_length"))
        self.names = input_names(tokenizer, config)
        self.language = language_id(config, task)
        self._last: tuple[Any, Any] = (None, None)

    def encode_once(self, texts: list[str], pairs: list[str] | None = None) -> tuple[BatchEncoding, bool]:
        """The encoding with offsets where the tokenizer is fast, and whether a text was cut; kept for the next call."""
        if self._last[0] != (texts, pairs):
            encoding = self.encode(texts, pairs, return_offsets_mapping=self.tokenizer.is_fast)
            self._last = (texts, pairs), (encoding, any(self.cut_rows(encoding, texts, pairs)))
        return self._last[1]

    def encode(self, texts: list[str], pairs: list[str] | None = None, **kwargs: Any) -> BatchEncoding:
        """See :func:`encode`."""
        return encode(self.tokenizer, texts, pairs, self.limit, **kwargs)

    def cut_rows(self, encoding: BatchEncoding, texts: list[str], pairs: list[str] | None = None) -> list[bool]:
        """See :func:`cut_rows`."""
        return cut_rows(self.tokenizer, encoding, texts, pairs, self.limit)

    def inputs(self, encoding: Mapping[str, Any]) -> dict[str, list[list[int]]]:
        """The model inputs of an encoding, a list of rows each."""
        result = {name: encoding[name] for name in self.names if name in encoding}
        if self.language is not None:
            result["langs"] = [[self.language] * len(ids) for ids in encoding["input_ids"]]
        return result


def language_id(config: PreTrainedConfig, task: Mapping[str, Any]) -> int | None:
    """The number of a task's language for backbones that are told it, as XLM; None where the task names none.

    Raises:
        ValueError: the backbone has no such language.
    """
    language = task.get("language")
    if language is None:
        return None
    known = getattr(config, "lang2id", None) or {}
    if language not in known:
        has = f"knows {', '.join(sorted(known))}" if known else "is not told languages"
        raise ValueError(
            f"Task '{task.get('name')}' has the language '{language}', and the backbone {config.model_type} {has}. "
            "Name another language, or leave it out." + close_match(str(language), list(known))
        )
    return int(known[language])


def padded(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, list[int]]], side: str | None = None
) -> dict[str, torch.Tensor]:
    """Model inputs of B rows as tensors (B, L), padded on the tokenizer's side or on the one that is given."""
    known = {"input_ids", "attention_mask", "token_type_ids"}
    kwargs = {} if side is None else {"padding_side": side}
    batch = dict(
        pad_without_fast_tokenizer_warning(
            tokenizer,
            [{key: value for key, value in row.items() if key in known} for row in rows],
            return_tensors="pt",
            **kwargs,
        )
    )
    length = batch["input_ids"].shape[1]
    left = (side or tokenizer.padding_side) == "left"
    for key in rows[0].keys() - known:
        filled = [[0] * (length - len(row[key])) for row in rows]
        batch[key] = torch.tensor(
            [pad + row[key] if left else row[key] + pad for pad, row in zip(filled, rows, strict=True)]
        )
    return batch


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
