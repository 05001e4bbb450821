"""Checks that the processor of the inputs fits the tasks and the backbone, before any row is read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import (
    FeatureExtractionMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import logging

from ...data import Encoded
from ...modeling.processors import tokenizer_of
from ...modeling.readers import TEXTS
from ...tasks import Task

logger = logging.get_logger(__name__)

Processing = PreTrainedTokenizerBase | FeatureExtractionMixin | ProcessorMixin

# Special tokens that texts are made of or filled up with; a family may have others, by names of its own.
_OF_TEXTS = {
    *(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")),
    *("additional_special_tokens", "extra_special_tokens"),
}


def check_processors(tasks: Mapping[str, Task], given: Processing) -> None:
    """Check that the processor of the inputs supports the tasks.

    Args:
        tasks: by name.
        given: the trainer's ``processing_class``.

    Raises:
        ValueError: it cannot.
    """
    for task in tasks.values():
        try:
            processor = task.reader.processor(given)
        except ValueError as problem:
            raise task.error(str(problem)) from None
        if task.reader.modality == TEXTS:
            task.check_tokenizer(processor)


def check_vocabulary(given: Processing, model: PreTrainedModel) -> None:
    """Check that the backbone has an embedding for every token that texts can become.

    Tokens that a family has beside those of texts, as Gemma's place of a picture, may lie behind the embeddings.

    Args:
        given: the trainer's ``processing_class``, with a tokenizer or without.
        model: the model.

    Raises:
        ValueError: it has not.
    """
    tokenizer = tokenizer_of(given)
    if tokenizer is None:
        return
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:  # CANINE, which reads characters, has hashes
        return
    if not isinstance(table, torch.nn.Embedding):
        return
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    beside = {token for name, token in special.items() if name not in _OF_TEXTS}
    vocabulary = tokenizer.get_vocab()
    behind = {number: token for token, number in vocabulary.items() if number >= table.num_embeddings}
    behind = {number: token for number, token in behind.items() if token not in beside}
    if behind:
        number = max(behind)
        raise ValueError(
            f"The tokenizer has {len(behind)} tokens, up to {number} ({behind[number]!r}), without an embedding in the "
            f"backbone, which has {table.num_embeddings}. Call model.resize_token_embeddings({number + 1}), or "
            "give the backbone's own tokenizer."
        )


def check_tokens(encoded: Encoded, task: Task, config: PreTrainedConfig, split: str) -> None:
    """Check that the backbone has an embedding for every token of some rows.

    Raises:
        ValueError: it has none for a token.
    """
    highest, known = encoded.highest_token(), getattr(config.get_text_config(), "vocab_size", None)
    if known is not None and highest >= known:  # CANINE, which reads characters, has no vocabulary
        raise task.error(
            f"the tokenizer makes token {highest} of the {split} data, and the backbone has {known} embeddings. Call "
            "model.resize_token_embeddings(len(tokenizer)), or give the backbone's own tokenizer."
        )


def ensure_pad_token(given: Processing) -> None:
    """Pad with the end-of-text token where a tokenizer has no padding token, as GPT-2's.

    Args:
        given: the trainer's ``processing_class``, with a tokenizer or without.

    Raises:
        ValueError: the tokenizer has neither.
    """
    tokenizer = tokenizer_of(given)
    if tokenizer is None or tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token is None:
        raise ValueError("The tokenizer has neither a padding nor an end-of-text token. Set tokenizer.pad_token.")
    tokenizer.pad_token = tokenizer.eos_token
    logger.warning(f"The tokenizer has no padding token; '{tokenizer.eos_token}' is used.")
