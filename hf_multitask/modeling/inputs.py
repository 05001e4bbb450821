"""From a text, or a pair of texts, to the inputs of the backbone."""

import inspect
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning
from transformers.utils import logging

from .aliases import Open, Settings
from .config import FORMAT_VERSION, close_match
from .keywords import check_stride
from .native import backbone_class
from .processors import stand_in

logger = logging.get_logger(__name__)

# Position ids of these families start behind the padding id.
OFFSET_POSITIONS = {
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

WINDOWS = "windows"  # of a row that is read in windows, the tokens of each
# By process: a lock that another thread holds as the process forks would stay locked in the fork.
_LOCKS: dict[int, AbstractContextManager[bool]] = {}
_MARGIN = 128  # tokens after the last one kept: text so far away does not change how words are tokenized


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Within it, no other thread uses a tokenizer, which keeps how it cuts, and its languages, in itself."""
    with _LOCKS.setdefault(os.getpid(), threading.RLock()):
        yield


def as_text(value: object) -> str:
    """A string as it is, a list of words joined by single spaces.

    Raises:
        TypeError: the value is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return " ".join(value)
    raise TypeError(f"a text should be a string or a list of words, not {value!r}")


def longest_input(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, max_length: int | None = None
) -> int | None:
    """How many tokens a row may have, special ones included; None where neither tokenizer nor backbone set a limit.

    A ``max_length`` that is given counts in place of the tokenizer's own.

    Raises:
        ValueError: the backbone has no positions for so many.
    """
    positions = positions_of(config)
    if max_length:
        if positions is not None and max_length > positions and getattr(config, "position_biased_input", True):
            raise ValueError(
                f"`max_length` should be {positions} tokens at most, for which the backbone {config.model_type} has "
                f"positions. Found `max_length = {max_length}`."
            )
        return max_length
    limits = [positions] if positions is not None else []
    if tokenizer.model_max_length < 1e9:
        limits.append(tokenizer.model_max_length)
    return min(limits) if limits else None


def positions_of(config: PreTrainedConfig) -> int | None:
    """Tokens that the backbone has positions for; None where it sets no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if not positions or positions < 0:  # XLNet has -1
        return None
    if config.model_type in OFFSET_POSITIONS:
        return positions - (config.pad_token_id or 0) - 1
    return positions - 2 if config.model_type == "mpnet" else positions  # MPNet's begin behind 1, whatever the padding


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
    """Tokenize a list of texts or of pairs, cut to ``max_length`` tokens.

    An empty text becomes the end-of-text token where the tokenizer would make no token of it at all.
    """
    with one_at_a_time():
        return _encode(tokenizer, texts, pairs, max_length, **kwargs)


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    pairs: list[str] | None,
    max_length: int | None,
    **kwargs: Any,
) -> BatchEncoding:
    if not tokenizer.num_special_tokens_to_add(pairs is not None):
        texts = [text or stand_in(tokenizer) for text in texts]
    if max_length is None:
        return tokenizer(texts, pairs, **kwargs)
    whole, texts = texts, [_shortened(tokenizer, text, max_length) for text in texts]
    pairs = None if pairs is None else [_shortened(tokenizer, pair, max_length) for pair in pairs]
    encoding = tokenizer(texts, pairs, truncation=True, max_length=max_length, **kwargs)
    if tokenizer.truncation_side == "left" and "offset_mapping" in encoding:
        for row, (text, rest) in enumerate(zip(whole, texts, strict=True)):
            if before := len(text) - len(rest):
                places = zip(encoding["offset_mapping"][row], encoding.sequence_ids(row), strict=True)
                encoding["offset_mapping"][row] = [
                    (start + before, end + before) if sequence == 0 else (start, end)
                    for (start, end), sequence in places
                ]
    return encoding


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
    # A slow tokenizer does not report it, so rows that fill the limit are tokenized again, uncut.
    return [
        len(ids) == max_length
        and len(tokenizer(text, None if pairs is None else pairs[row], verbose=False)["input_ids"]) > max_length
        for row, (ids, text) in enumerate(zip(encoding["input_ids"], texts, strict=True))
    ]


@dataclass(frozen=True)
class Windows:
    """A text as one or more windows of tokens that overlap; the first is what is left of a text that is cut.

    Args:
        rows: model inputs of each window.
        offsets: places, ``(start, end)``, of all tokens of the text but special ones, in rising order.
        starts: which of them each window begins with.
        lead: special tokens that every window begins with.
        room: tokens of the text in a whole window.
    """

    rows: list[dict[str, list[int]]]
    offsets: list[tuple[int, int]]
    starts: list[int]
    lead: int
    room: int

    def home(self) -> list[tuple[int, int]]:
        """For every token of the text its window, the one in which it has most context, and its place there."""
        total = len(self.offsets)
        best: list[tuple[int, int]] = [(0, self.lead + token) for token in range(total)]
        if len(self.rows) == 1:
            return best
        most = [-1] * total
        for window, start in enumerate(self.starts):
            end = min(start + self.room, total)
            for token in range(start, end):
                context = min(token - start if start else total, end - 1 - token if end < total else total)
                if context > most[token]:
                    most[token], best[token] = context, (window, self.lead + token - start)
        return best


class InputEncoder:
    """What a reader makes the inputs of a backbone with.

    Args:
        processor: of its modality.
        config: the backbone's configuration.
        names: of the model inputs that it makes.
        limit: on the length of a row; None without one.
        language: see :func:`language_id`.
    """

    def __init__(
        self,
        processor: object,
        config: PreTrainedConfig,
        names: Sequence[str],
        *,
        limit: int | None = None,
        language: int | None = None,
    ) -> None:
        self.processor, self.config, self.names = processor, config, list(names)
        self.limit, self.language = limit, language
        self.told: set[str] = set()

    def tell(self, sentence: str) -> None:
        """Warn of something, once."""
        if sentence not in self.told:
            self.told.add(sentence)
            logger.warning(sentence)


class Encoder(InputEncoder):
    """Texts to the inputs of a backbone, within its limits.

    Args:
        tokenizer: the backbone's.
        config: the backbone's configuration.
        task: the task's dict, of which ``max_length`` and ``language`` count.
        format_version: of the model, which decides what a word is.

    Raises:
        ValueError: the task has a language that the backbone does not know, or a length that it has no positions for.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        task: Settings | None = None,
        format_version: int = FORMAT_VERSION,
    ) -> None:
        task = task or {}
        try:
            limit = longest_input(tokenizer, config, task.get("max_length"))
        except ValueError as problem:
            raise ValueError(f"Task '{task.get('name')}': {problem}") from None
        names = input_names(tokenizer, config)
        super().__init__(tokenizer, config, names, limit=limit, language=language_id(config, task))
        self.tokenizer = tokenizer
        self.format_version = format_version
        self._last: tuple[object, Open] = (None, None)

    def encode_once(self, texts: list[str], pairs: list[str] | None = None) -> tuple[BatchEncoding, bool]:
        """The encoding with offsets where the tokenizer is fast, and whether a text was cut; kept for the next call."""
        key, result = self._last
        if key != (texts, pairs):
            encoding = self.encode(texts, pairs, return_offsets_mapping=self.tokenizer.is_fast)
            key, result = (texts, pairs), (encoding, any(self.cut_rows(encoding, texts, pairs)))
            self._last = key, result
        return result

    def encode(self, texts: list[str], pairs: list[str] | None = None, **kwargs: Any) -> BatchEncoding:
        """See :func:`encode`."""
        return encode(self.tokenizer, texts, pairs, self.limit, **kwargs)

    def cut_rows(self, encoding: BatchEncoding, texts: list[str], pairs: list[str] | None = None) -> list[bool]:
        """See :func:`cut_rows`."""
        return cut_rows(self.tokenizer, encoding, texts, pairs, self.limit)

    def inputs(self, encoding: Settings) -> dict[str, list[list[int]]]:
        """The model inputs of an encoding, a list of rows each."""
        result = {name: encoding[name] for name in self.names if name in encoding}
        if self.language is not None:
            result["langs"] = [[self.language] * len(ids) for ids in encoding["input_ids"]]
        return result

    def windows(self, text: str, stride: int = 0) -> Windows:
        """A text in windows that overlap by ``stride`` tokens; needs a fast tokenizer.

        Raises:
            ValueError: the windows would have no new token.
        """
        key, whole = self._last
        if key != text:
            with one_at_a_time():
                encoding = _encode(self.tokenizer, [text], None, None, return_offsets_mapping=True, verbose=False)
            inside = [token for token, sequence in enumerate(encoding.sequence_ids(0)) if sequence == 0]
            lead, count = (inside[0], len(inside)) if inside and text else (0, 0)
            (row,) = rows_of(self.inputs(encoding))
            whole = row, encoding["offset_mapping"][0][lead : lead + count], lead
            self._last = text, whole
        row, offsets, lead = whole
        count, length = len(offsets), len(row["input_ids"])
        if self.limit is None or length <= self.limit:
            return Windows([row], offsets, [0], lead, count)
        room = self.limit - (length - count)
        check_stride(stride, self.limit, length - count)
        starts = list(range(0, count - stride, room - stride))
        if self.tokenizer.truncation_side == "left":  # so that the first window is what the text is cut to
            starts = [max(count - room - start, 0) for start in starts]
        rows = [
            {
                name: [
                    *values[:lead],
                    *values[lead + start : lead + min(start + room, count)],
                    *values[lead + count :],
                ]
                for name, values in row.items()
            }
            for start in starts
        ]
        return Windows(rows, offsets, starts, lead, room)


def language_id(config: PreTrainedConfig, task: Settings) -> int | None:
    """The number of a task's language for backbones that need it, such as XLM; None if the task names no language.

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


def rows_of(inputs: Mapping[str, list[list[int]]]) -> list[dict[str, list[int]]]:
    """Lists by name of an input to the inputs of single rows."""
    return [dict(zip(inputs, values, strict=True)) for values in zip(*inputs.values(), strict=True)]


def padded(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, list[int]]], side: str = "right"
) -> dict[str, torch.Tensor]:
    """Model inputs of B rows as tensors (B, L), padded on the right, whatever the tokenizer's side is.

    Padding on the left moves absolute positions and the first token of a row, so that an answer would depend on the
    other rows. Only decoders that generate need it.

    Inputs that some rows do not have are filled as a tokenizer fills them for a single text: 1 in the attention mask,
    0 elsewhere.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    rows = [
        row
        if len(row) == len(names)
        else {name: row.get(name) or [int(name == "attention_mask")] * len(row["input_ids"]) for name in names}
        for row in rows
    ]
    known = {"input_ids", "attention_mask", "token_type_ids"}
    batch = dict(
        pad_without_fast_tokenizer_warning(
            tokenizer,
            [{key: value for key, value in row.items() if key in known} for row in rows],
            return_tensors="pt",
            padding_side=side,
        )
    )
    length = batch["input_ids"].shape[1]
    left = side == "left"
    for key in names.keys() - known:
        filled = [[0] * (length - len(row[key])) for row in rows]
        batch[key] = torch.tensor(
            [pad + row[key] if left else row[key] + pad for pad, row in zip(filled, rows, strict=True)]
        )
    return batch
