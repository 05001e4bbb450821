"""Chats: lists of messages, which the chat template of a tokenizer turns into a text, and prompts of either kind."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from transformers import PreTrainedTokenizerBase

from .aliases import Open, Settings
from .inputs import as_text, one_at_a_time

ASSISTANT = "assistant"
_MARKED = re.compile(r"{%-?\s*generation\s*-?%}")

Chat = Sequence[Settings]


def is_chat(value: object) -> TypeGuard[Chat]:
    """Whether a value is a list of messages, each with ``role`` and ``content``."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(one, Mapping) and {"role", "content"} <= one.keys() for one in value)
    )


def keyed(value: object) -> object:
    """An input of the pipeline that is a chat, or has one as its text, as one with ``messages``; others as they are."""
    messages = getattr(value, "messages", value)  # of what the pipelines of Transformers make of a chat
    if is_chat(messages):
        return {"messages": list(messages)}
    if isinstance(value, Mapping) and is_chat(value.get("text")):
        return {**value, "text": None, "messages": list(value["text"])}
    return value


def is_prompted(task: Settings) -> bool:
    """Whether a task continues prompts or chats, in place of any text."""
    return any(task.get(key) is not None for key in ("prompt_column", "messages_column"))


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template of a tokenizer; None without one."""
    return tokenizer.get_chat_template() if tokenizer.chat_template else None


def marks_assistant(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template says which words are the assistant's, by ``{% generation %}``."""
    return tokenizer.is_fast and _MARKED.search(chat_template(tokenizer) or "") is not None


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Chat, **kwargs: Open) -> Open:
    """What the chat template of a tokenizer makes of messages: a text, or tokens where ``tokenize`` is given.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if chat_template(tokenizer) is None:
        raise ValueError(
            f"the tokenizer {type(tokenizer).__name__} has no chat template, which turns messages into a text. Set "
            "tokenizer.chat_template, or use the tokenizer of a chat model"
        )
    given = {"tokenize": False, "tokenizer_kwargs": {"verbose": False}, **kwargs}
    with one_at_a_time():
        return tokenizer.apply_chat_template([dict(one) for one in messages], **given)


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Chat) -> str:
    """A chat up to where an answer begins, or within its last message if that is the assistant's."""
    continues = messages[-1]["role"] == ASSISTANT
    return rendered(tokenizer, messages, continue_final_message=continues, add_generation_prompt=not continues)


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    """The tokens of a text, with special tokens at its ends where they are requested."""
    with one_at_a_time():
        return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: object) -> list[int]:
    """The tokens of a prompt, a text or a chat, as in the pipeline of Transformers.

    A text has no end-of-text token, even of a tokenizer that adds one.

    Raises:
        TypeError: a prompt is neither a text nor a chat.
        ValueError: the tokenizer has no chat template.
    """
    if is_chat(prompt):
        return tokens_of(tokenizer, prompt_text(tokenizer, prompt))
    text, end = as_text(prompt), tokenizer.eos_token_id
    ids = tokens_of(tokenizer, text, special=True)
    added = tokenizer.num_special_tokens_to_add() and ids[-1:] == [end] and not text.endswith(str(tokenizer.eos_token))
    return ids[:-1] if added else ids
