"""Masked and causal language modeling."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..modeling.chats import chat_template, is_prompted
from ..modeling.heads import IGNORE
from . import labels as lab
from .base import Task
from .constant import entropy
from .joining import stored_columns
from .prompts import COMPLETION, MESSAGES, PROMPT, REMARKS, Prompted, check_prompted, read_prompted
from .registration import register_task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from ..modeling.inputs import Encoder
    from .columns import Cells, Columns, Encoding, Inputs, Labels, References


@dataclass(kw_only=True)
class LanguageModelling(Task):
    """The base class of both types."""

    joins_texts: ClassVar[bool] = True
    text_column: str | list[str] = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_column is not None:
            raise self.error(
                f"`weight_column` is not for {self.type}, whose items are the tokens of all texts. Found "
                f"`weight_column = {self.weight_column!r}`. Leave it out."
            )

    @property
    def target_column(self) -> str:
        """The text itself."""
        return self.text_columns[0]

    @property
    def columns(self) -> list[str]:
        """See :class:`Task`."""
        return stored_columns(self, self.target_column)

    def collate(self, labels: Labels, length: int, padding_side: str) -> torch.Tensor:
        """Labels (N, L), -100 for tokens without a label."""
        return lab.padded(labels, length, padding_side)

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`."""
        return ["token_accuracy", "perplexity"]

    def score(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,
        *,
        unseen: Cells,
        references: References,  # noqa: ARG002
        loss: float,
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> dict[str, float]:
        """``token_accuracy``, and ``perplexity``, the exponential of the mean loss of a token."""
        return {**self.measure(predictions, labels, unseen), "perplexity": math.exp(min(loss, 700.0))}

    def measure(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,
        unseen: Cells,  # noqa: ARG002
    ) -> dict[str, float]:
        """``token_accuracy``."""
        from .metrics import Accuracy

        told = predictions != IGNORE
        accuracy = Accuracy().compute(predictions=predictions[told], references=self.targets(labels)[told])
        return {"token_accuracy": accuracy["accuracy"]}

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """For each position of (N, L), the token that is predicted there."""
        return labels


@dataclass(kw_only=True)
class FillMask(LanguageModelling):
    """Predict masked words: the masked language modeling of BERT, with a new mask whenever a row is drawn.

    Each token that is not a special token is selected with ``mlm_probability``; of the selected tokens, 80 % are
    replaced by the mask token, 10 % by a random token, and 10 % are not changed (BERT, 2018, section 3.1,
    https://arxiv.org/abs/1810.04805). The selection depends on seed, optimizer step and row only; evaluation always
    uses the same mask for a row.

    Args:
        text_column: column of the text, or a list of columns, whose texts are joined by a space.
        mlm_probability: share of the tokens that are predicted.
        dataset: see :class:`Task`.
        max_length: see :class:`Task`.
        language: see :class:`Task`.
    """

    type: ClassVar[str] = "fill-mask"
    masks: ClassVar[bool] = True
    mlm_probability: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.mlm_probability, float | int) or not 0 < self.mlm_probability <= 1:
            raise self.error(
                "`mlm_probability` should be above 0, and 1 at most. "
                f"Found `mlm_probability = {self.mlm_probability!r}`."
            )

    @property
    def input_key(self) -> tuple[Hashable, ...]:
        """See :class:`Task`: masked rows are not shared."""
        return (*super().input_key, self.type, self.name)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """See :meth:`Task.check_tokenizer`."""
        super().check_tokenizer(tokenizer)
        if tokenizer.mask_token_id is None:
            raise self.error(
                f"the tokenizer {type(tokenizer).__name__} has no mask token. Use a backbone that was trained with "
                "one, or set tokenizer.mask_token."
            )

    def encode_labels(
        self,
        rows: Columns,  # noqa: ARG002
        indices: list[int],  # noqa: ARG002
        encoding: BatchEncoding,
        unseen: Cells,  # noqa: ARG002
        split: str,  # noqa: ARG002
    ) -> Labels:
        """See :meth:`Task.encode_labels`: empty labels, because masks are drawn later."""
        return [[IGNORE] * len(ids) for ids in encoding["input_ids"]]

    def constant_loss(
        self,
        labels: References,  # noqa: ARG002
        rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
    ) -> float | None:
        """See :meth:`Task.constant_loss`: entropy of the single tokens."""
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        return entropy(token for row in rows["input_ids"] for token in row if token not in special)

    def masked(
        self, inputs: Inputs, label: list[int], tokenizer: PreTrainedTokenizerBase, generator: np.random.Generator
    ) -> tuple[Inputs, list[int]]:
        """See :meth:`Task.masked`."""
        ids, special = list(inputs["input_ids"]), set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        chances, kinds = generator.random(len(ids)), generator.random(len(ids))
        words = generator.integers(0, len(tokenizer), len(ids))
        drawn = list(label)
        for place, token in enumerate(inputs["input_ids"]):
            if token not in special and chances[place] < self.mlm_probability:
                drawn[place] = token
                if kinds[place] < 0.8:
                    ids[place] = tokenizer.mask_token_id
                elif kinds[place] < 0.9:
                    ids[place] = int(words[place])
        return {**inputs, "input_ids": ids}, drawn


@dataclass(kw_only=True)
class TextGeneration(LanguageModelling):
    """Predict every next word of a text with a causal language model, or the answers to prompts and in chats.

    A text begins with the beginning-of-text token, if the tokenizer has one, and ends with the end-of-text token. It is
    split into blocks; no block contains words of two texts. A block begins with the last token of the previous one, so
    that every token is predicted once.

    With a ``prompt_column`` and a ``completion_column``, or a ``messages_column``, a row is one prompt with its answer,
    of which only the answer trains. The formats are those of TRL: two texts, of which the second one gets the
    end-of-text token; two lists of messages; or one list of messages.

    Args:
        text_column: column of the text, or a list of columns, whose texts are joined by a space.
        prompt_column: column of the prompt, in place of ``text_column``.
        completion_column: column of the answer to it; None in a row without an answer.
        messages_column: column of a chat, in place of both.
        block_size: tokens of a block; the maximum of tokenizer and backbone, but at most 1024, if None.
        num_beams: beams of the search in the pipeline.
        max_new_tokens: tokens that the pipeline adds to a text.
        dataset: see :class:`Task`.
        max_length: tokens to which a prompt with its answer is truncated; not used for texts, which are not truncated.
        language: see :class:`Task`.
    """

    type: ClassVar[str] = "text-generation"
    remarks: ClassVar[Mapping[str, str]] = REMARKS
    prompt_column: str | None = None
    completion_column: str | None = None
    messages_column: str | None = None
    block_size: int | None = None
    num_beams: int | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("block_size", 2)
        self.check_number("num_beams", 1)
        self.check_number("max_new_tokens", 1)
        own = {name: getattr(self, name) for name in (PROMPT, COMPLETION, MESSAGES, "block_size")}
        check_prompted(self, {**own, "text_column": None if self.text_column == "text" else self.text_column})

    @property
    def prompted(self) -> bool:
        """Whether it reads prompts or chats."""
        return is_prompted(self.to_dict())

    @property
    def target_column(self) -> str:
        """The answers; the text itself, or the chat, where a column has both."""
        return self.completion_column or super().target_column

    @property
    def columns(self) -> list[str]:
        """See :class:`Task`."""
        return super().columns if self.prompt_column is None else [self.prompt_column, self.target_column]

    @property
    def keeps_rows(self) -> bool:
        """See :class:`Task`: a text is split into blocks, and a prompt is not."""
        return self.prompted

    @property
    def input_key(self) -> tuple[Hashable, ...]:
        """See :class:`Task`: blocks are not shared."""
        return (*super().input_key, self.type, self.block_size, self.completion_column, self.messages_column)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """See :meth:`Task.check_tokenizer`."""
        super().check_tokenizer(tokenizer)
        if self.messages_column is not None and chat_template(tokenizer) is None:
            raise self.error(
                f"`messages_column` needs a chat template, and the tokenizer {type(tokenizer).__name__} has none. Set "
                "tokenizer.chat_template, or use the tokenizer of a chat model."
            )

    def constant_loss(
        self,
        labels: References,
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: entropy of the single tokens."""
        return entropy(token for row in labels for token in row[1:] if token != IGNORE)

    def encode_inputs(
        self,
        rows: Columns,
        indices: list[int],
        encoder: Encoder,
        split: str,
        *,
        offsets: bool,  # noqa: ARG002
    ) -> tuple[Columns, Encoding, list[bool]]:
        """See :meth:`Task.encode_inputs`: prompts with their answers, or the blocks of every text, each as a row."""
        if self.prompted:
            found = read_prompted(self, rows, indices, encoder.tokenizer, split)
            cut = [one.cut(encoder.limit) for one in found]
            return _inputs([one.ids for one in found], encoder), found, cut
        tokenizer = encoder.tokenizer
        size = min(self.block_size or 1024, encoder.limit or self.block_size or 1024)
        texts = self.texts(rows[self.target_column], self.target_column, indices, split)
        blocks: list[list[int]] = []
        for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []:
            begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
            ids = [*begin, *ids, *end]
            blocks += [ids[start : start + size] for start in range(0, max(len(ids) - 1, 1), size - 1)]
        return _inputs(blocks, encoder), blocks, [False] * len(blocks)

    def encode_labels(
        self,
        rows: Columns,  # noqa: ARG002
        indices: list[int],  # noqa: ARG002
        encoding: list[list[int]] | list[Prompted],
        unseen: Cells,  # noqa: ARG002
        split: str,  # noqa: ARG002
    ) -> Labels:
        """See :meth:`Task.encode_labels`: the tokens themselves; of a prompt with its answer, those of the answer."""
        return [one.labels if isinstance(one, Prompted) else one for one in encoding]

    def more_columns(
        self,
        rows: Columns,  # noqa: ARG002
        labels: Labels,  # noqa: ARG002
        encoding: list[list[int]] | list[Prompted],
        *,
        training: bool,  # noqa: ARG002
    ) -> Columns:
        """See :meth:`Task.more_columns`: what is reported of prompts."""
        prompted = [one for one in encoding if isinstance(one, Prompted)]
        return {kind: [getattr(one, kind) for one in prompted] for kind in REMARKS} if self.prompted else {}

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """See :class:`LanguageModelling`: the token after each position."""
        import numpy as np

        return np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)


def _inputs(rows: list[list[int]], encoder: Encoder) -> Columns:
    inputs = {"input_ids": rows, "attention_mask": [[1] * len(ids) for ids in rows]}
    inputs["token_type_ids"] = [[0] * len(ids) for ids in rows]
    return {name: inputs[name] for name in inputs if name in encoder.names}


register_task(FillMask)
register_task(TextGeneration)
