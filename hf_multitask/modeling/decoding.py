"""The decoders by the names that the files of users import; each is defined next to the reader of its type."""

from .readers import Decoder, TokenWords, token_words
from .sequences import decode_sequence
from .tags import Span, decode_tokens, decode_units, is_bio, spans_of

__all__ = [
    "Decoder",
    "Span",
    "TokenWords",
    "decode_sequence",
    "decode_tokens",
    "decode_units",
    "is_bio",
    "spans_of",
    "token_words",
]
