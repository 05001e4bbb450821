"""Masked and causal language modeling."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..modeling.heads import IGNORE
from . import labels as lab
from .base import Task
from .constant import entropy
from .joining import stored_columns
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
    """Predict every next word of a text with a causal language model.

    A text begins with the beginning-of-text token, if the tokenizer has one, and ends with the end-of-text token. It is
    split into blocks; no block contains words of two texts. A block begins with the last token of the previous one, so
    that every token is predicted once.

    Args:
        text_column: column of the text, or a list of columns, whose texts are joined by a space.
        block_size: tokens of a block; the maximum of tokenizer and backbone, but at most 1024, if None.
        num_beams: beams of the search in the pipeline.
        max_new_tokens: tokens that the pipeline adds to a text.
        dataset: see :class:`Task`.
        max_length: not used; texts are not truncated.
        language: see :class:`Task`.
    """

    type: ClassVar[str] = "text-generation"
    block_size: int | None = None
    num_beams: int | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("block_size", 2)
        self.check_number("num_beams", 1)
        self.check_number("max_new_tokens", 1)

    @property
    def keeps_rows(self) -> bool:
        """False, because a row is split into blocks."""
        return False

    @property
    def input_key(self) -> tuple[Hashable, ...]:
        """See :class:`Task`: blocks are not shared."""
        return (*super().input_key, self.type, self.block_size)

    def constant_loss(
        self,
        labels: References,
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: entropy of the single tokens."""
        return entropy(token for row in labels for token in row[1:])

    def encode_inputs(
        self,
        rows: Columns,
        indices: list[int],
        encoder: Encoder,
        split: str,
        *,
        offsets: bool,  # noqa: ARG002
    ) -> tuple[Columns, Encoding, list[bool]]:
        """See :meth:`Task.encode_inputs`: the blocks of every row, each as a row."""
        tokenizer = encoder.tokenizer
        size = min(self.block_size or 1024, encoder.limit or self.block_size or 1024)
        texts = self.texts(rows[self.target_column], self.target_column, indices, split)
        blocks: list[list[int]] = []
        for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []:
            begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
            ids = [*begin, *ids, *end]
            blocks += [ids[start : start + size] for start in range(0, max(len(ids) - 1, 1), size - 1)]
        inputs = {"input_ids": blocks, "attention_mask": [[1] * len(block) for block in blocks]}
        inputs["token_type_ids"] = [[0] * len(block) for block in blocks]
        return {name: inputs[name] for name in inputs if name in encoder.names}, blocks, [False] * len(blocks)

    def encode_labels(
        self,
        rows: Columns,  # noqa: ARG002
        indices: list[int],  # noqa: ARG002
        encoding: list[list[int]],
        unseen: Cells,  # noqa: ARG002
        split: str,  # noqa: ARG002
    ) -> Labels:
        """See :meth:`Task.encode_labels`: the tokens themselves."""
        return encoding

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """See :class:`LanguageModelling`: the token after each position."""
        import numpy as np

        return np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)


register_task(FillMask)
register_task(TextGeneration)
