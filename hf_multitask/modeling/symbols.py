"""The symbols of a head for CTC, and those of a stock tokenizer as such."""

import re
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from .aliases import Open, Values
from .speech import PAD

UNKNOWN, START, END = "<unk>", "<s>", "</s>"
_SPECIAL = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")


def is_symbol(value: object) -> bool:
    """Whether something can be a symbol of a vocabulary: a character, or a special token such as ``<unk>``."""
    return isinstance(value, str) and (len(value) == 1 or _SPECIAL.fullmatch(value) is not None)


def own_symbols(given: Open, stock: PreTrainedModel, hub: Values) -> list[str] | None:
    """The symbols of a stock model for CTC, of the tokenizer that is saved with it; None where they are not known.

    The blank is ``<pad>`` in them, and the word delimiter a space, whatever the tokenizer calls them.

    Args:
        given: the model, or its folder or Hub id.
        stock: the model.
        hub: arguments of ``from_pretrained``.
    """
    from transformers import Wav2Vec2CTCTokenizer  # here, as it takes its time

    source = stock.config.name_or_path if isinstance(given, PreTrainedModel) else given
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **hub) if source else None
    except (OSError, ValueError, ImportError, KeyError, TypeError):  # the last for a folder without the file
        return None
    if not isinstance(tokenizer, Wav2Vec2CTCTokenizer) or tokenizer.pad_token_id is None:
        return None
    called = {number: symbol for symbol, number in tokenizer.get_vocab().items()}
    if tokenizer.do_lower_case:  # which its texts are then in
        called = {number: symbol.lower() for number, symbol in called.items()}
    called |= {tokenizer.pad_token_id: PAD, tokenizer.word_delimiter_token_id: " "}
    symbols = [called.get(number) for number in range(stock.config.vocab_size)]
    found = [symbol for symbol in symbols if symbol is not None and is_symbol(symbol)]
    whole = len(set(found)) == len(symbols) and PAD in found
    return found if whole else None
