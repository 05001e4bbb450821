"""Texts that a model writes: target tokens, language codes, and the arguments of ``generate``."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from .aliases import Function, Settings, Values
from .config import close_match
from .keywords import check_keywords, parameter_names

_CODES = (("source_lang", "src_lang"), ("target_lang", "tgt_lang"))
_PROMPT = 4  # tokens that Whisper's decoder begins with: the start, the language, what is done, no timestamps


def language_code_ids(tokenizer: PreTrainedTokenizerBase, task: Settings) -> dict[str, int]:
    """Tokens of the languages that a task names: by ``source_lang`` and ``target_lang``.

    Raises:
        ValueError: the tokenizer takes no language codes, or does not know one.
    """
    ids = {}
    for key, attribute in _CODES:
        code = task.get(key)
        if code is None:
            continue
        where = f"Task '{task.get('name')}' names the {key} '{code}', and the tokenizer {type(tokenizer).__name__}"
        if not hasattr(tokenizer, attribute):
            raise ValueError(f"{where} takes no language codes. Leave it out, or name the language in the prefix.")
        found = tokenizer.convert_tokens_to_ids(code)
        if found is None or found == tokenizer.unk_token_id:
            known = [token for token in tokenizer.all_special_tokens if "_" in token]
            raise ValueError(
                f"{where} does not know it. Name one of its codes{' (' + ', '.join(known) + ')' if known else ''}."
                + close_match(code, known)
            )
        ids[key] = int(str(found))
    return ids


@contextmanager
def languages(tokenizer: PreTrainedTokenizerBase, task: Settings) -> Iterator[None]:
    """Set a tokenizer to the languages of a task within this context."""
    before = {}
    for key, attribute in _CODES:
        if task.get(key) is not None:
            before[attribute] = getattr(tokenizer, attribute)
            setattr(tokenizer, attribute, task[key])
    try:
        yield
    finally:
        for attribute, value in before.items():
            if value is not None:
                setattr(tokenizer, attribute, value)


def generation_kwargs(tokenizer: PreTrainedTokenizerBase, task: Settings, config: PreTrainedConfig) -> Values:
    """The arguments of ``generate`` for a task beside its inputs: beams, length, the first token of the target.

    The length is within the positions of the backbone, of which the prompt of a causal model has at least half.
    """
    most = task.get("max_new_tokens") or task.get("max_target_length") or 64
    if (positions := target_positions(config)) is not None:
        most = min(most, positions if config.is_encoder_decoder else positions // 2)
    kwargs: Values = {"max_new_tokens": most}
    if config.model_type == "whisper":  # whose own generate hands both limits on, which is warned of for every row
        kwargs["max_length"] = None
    if task.get("num_beams"):
        kwargs["num_beams"] = task["num_beams"]
    if task.get("language") and hasattr(tokenizer, "set_prefix_tokens"):
        kwargs["language"] = task["language"]
    ids = language_code_ids(tokenizer, task)
    if "target_lang" in ids:
        kwargs["forced_bos_token_id"] = ids["target_lang"]
    return kwargs


def target_positions(config: PreTrainedConfig) -> int | None:
    """Tokens of a target that the decoder of a backbone has positions for; None where it sets no limit."""
    if config.model_type == "whisper":
        return config.max_target_positions - _PROMPT
    return getattr(config, "max_text_positions", None) or getattr(config, "max_position_embeddings", None)


@contextmanager
def transcribing(tokenizer: PreTrainedTokenizerBase, task: Settings) -> Iterator[None]:
    """Set the tokenizer of a multilingual Whisper to the language of a task within this context."""
    language, setter = task.get("language"), getattr(tokenizer, "set_prefix_tokens", None)
    if language is None or setter is None:
        yield
        return
    before: Values = {key: getattr(tokenizer, key) for key in ("language", "task", "predict_timestamps")}
    setter(language=language, task="transcribe", predict_timestamps=False)
    try:
        yield
    finally:
        for key, value in before.items():  # which the method leaves as it is where it is None
            setattr(tokenizer, key, value)
        setter()


class Writer(Protocol):
    """A backbone that generates."""

    generate: Function
    forward: Function


def generation_settings() -> list[str]:
    """The names of what a ``GenerationConfig`` holds."""
    return [name for name in vars(GenerationConfig()) if not name.startswith("_")]


def check_generate_kwargs(caller: str, given: Settings, backbone: Writer) -> None:
    """Check that ``generate`` of a backbone takes all arguments.

    Raises:
        TypeError: one is not known.
    """
    read = [*parameter_names(backbone.generate), *parameter_names(backbone.forward), "tokenizer", "assistant_tokenizer"]
    check_keywords(caller, given, [*generation_settings(), *read], {"tasks": "Name the one that writes, in `task`."})
