"""Inputs of the task types as code, for the cards of models."""

from dataclasses import dataclass

TEXT = "Ada Lovelace loved this place."


@dataclass(frozen=True)
class Example:
    """An input of a type.

    Args:
        asked: what the pipeline of a multi-task model is asked.
        tokens: what the tokenizer gets for the same.
        rows: how many rows that is, where an item has several.
        writes: whether the answer is a text that the model generates.
    """

    asked: str
    tokens: str
    rows: int = 1
    writes: bool = False


AUDIO = Example('"recording.wav"', "")
SPOKEN = Example('{"audio": "recording.wav"}', "", writes=True)
TRANSCRIBED = Example('"recording.wav"', "", writes=True)
ONE = Example(f'"{TEXT}"', f'"{TEXT}"')
_MESSAGES = f'[{{"role": "user", "content": "{TEXT}"}}]'
CHAT = Example(_MESSAGES, _MESSAGES, writes=True)
PAIR = Example(f'{{"text": "{TEXT}", "text_pair": "She liked it."}}', f'"{TEXT}", "She liked it."')
