"""Text generation from a text: translation, summarization, and other tasks with a prefix."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..modeling.generation import language_code_ids, languages
from ..modeling.heads import IGNORE
from ..modeling.inputs import as_text, one_at_a_time
from . import labels as lab
from .base import Task
from .constant import entropy
from .registration import register_task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from ..modeling.inputs import Encoder
    from .columns import Cells, Columns, Encoding, Labels, References


@dataclass(kw_only=True)
class Text2TextGeneration(Task):
    """Generate a target text from a source text with an encoder-decoder.

    Evaluation generates the targets with the ``generate`` method of the backbone.

    Args:
        source_column: column of the source.
        target_column: column of the target; None in a row without a target.
        prefix: added before the source, such as ``"summarize: "`` for T5.
        source_lang: language code of the source, for tokenizers with language codes, such as that of mBART.
        target_lang: language code of the target.
        max_target_length: tokens to which a target is truncated, and maximum number of generated tokens.
        num_beams: beams of the search.
        dataset: see :class:`Task`.
        max_length: tokens to which a source is truncated; see :class:`Task`.
        language: see :class:`Task`.
        weight_column: see :class:`Task`.
    """

    type: ClassVar[str] = "text2text-generation"
    source_column: str = "source"
    target_column: str = "target"
    prefix: str | None = None
    source_lang: str | None = None
    target_lang: str | None = None
    max_target_length: int = 128
    num_beams: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("max_target_length", 1, none=False)
        self.check_number("num_beams", 1)

    @property
    def input_key(self) -> tuple[Hashable, ...]:
        """See :class:`Task`."""
        return (*super().input_key, self.prefix, self.source_lang)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """See :meth:`Task.check_tokenizer`."""
        super().check_tokenizer(tokenizer)
        language_code_ids(tokenizer, {**self.to_dict(), "name": self.name})

    def check_extras(self) -> None:
        """See :meth:`Task.check_extras`: rouge-score, or sacrebleu for translation, by evaluating a text."""
        self.text_metrics(["text"], ["text"])

    def encode_inputs(
        self, rows: Columns, indices: list[int], encoder: Encoder, split: str, *, offsets: bool
    ) -> tuple[Columns, Encoding, list[bool]]:
        """See :meth:`Task.encode_inputs`: prefix and source, with their language code."""
        sources = self.texts(rows[self.source_column], self.source_column, indices, split)
        with one_at_a_time(), languages(encoder.tokenizer, self.to_dict()):
            inputs, encoding, cut = super().encode_inputs(
                {**rows, self.source_column: [(self.prefix or "") + source for source in sources]},
                indices,
                encoder,
                split,
                offsets=offsets,
            )
        positions = getattr(encoder.config, "max_position_embeddings", None) or self.max_target_length
        return inputs, (encoding, encoder.tokenizer, min(self.max_target_length, positions)), cut

    def placeholder(self, row: Columns) -> object:  # noqa: ARG002
        """See :meth:`Task.placeholder`."""
        return "a"

    def encode_labels(
        self,
        rows: Columns,
        indices: list[int],
        encoding: tuple[BatchEncoding, PreTrainedTokenizerBase, int],
        unseen: Cells,  # noqa: ARG002
        split: str,
    ) -> Labels:
        """See :meth:`Task.encode_labels`: the tokens of the target."""
        _, tokenizer, most = encoding
        given = [row for row, target in enumerate(rows[self.target_column]) if target is not None]
        labels: Labels = [None] * len(indices)
        if given:
            column = self.target_column
            texts = self.texts([rows[column][row] for row in given], column, [indices[row] for row in given], split)
            with one_at_a_time(), languages(tokenizer, self.to_dict()):
                encoded = tokenizer(text_target=texts, truncation=True, max_length=most)
            for row, ids in zip(given, encoded["input_ids"], strict=True):
                labels[row] = ids
        return labels

    def more_columns(
        self,
        rows: Columns,
        labels: Labels,
        encoding: tuple[BatchEncoding, PreTrainedTokenizerBase, int],
        *,
        training: bool,
    ) -> Columns:
        """See :meth:`Task.more_columns`: which targets were truncated, and the whole targets for evaluation."""
        _, tokenizer, most = encoding
        texts = [None if target is None else as_text(target) for target in rows[self.target_column]]
        cut = [
            ids is not None and len(ids) == most and len(tokenizer(text_target=text, verbose=False)["input_ids"]) > most
            for text, ids in zip(texts, labels, strict=True)
        ]
        return {"cut": cut} | ({} if training else {"gold": texts})

    def collate(self, labels: Labels, length: int, padding_side: str) -> torch.Tensor:  # noqa: ARG002
        """Tokens (N, T), padded with -100."""
        return lab.padded(labels, max(map(len, labels)), "right")

    def constant_loss(
        self,
        labels: References,
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """See :meth:`Task.constant_loss`: entropy of the single tokens."""
        return entropy(token for row in labels for token in row)

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`."""
        return ["rougeL", "rouge1", "rouge2"]

    def score(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,  # noqa: ARG002
        *,
        unseen: Cells,  # noqa: ARG002
        references: References,
        loss: float,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,
    ) -> dict[str, float]:
        """Metrics of the generated texts, as the pipeline answers them, and the targets of the data."""
        import numpy as np

        ids = np.where(predictions == IGNORE, tokenizer.pad_token_id, predictions).astype(np.int64)
        written = tokenizer.batch_decode(ids, skip_special_tokens=True)
        wanted = [text.strip() for text in references]
        return self.text_metrics([text.strip() for text in written], wanted)

    def text_metrics(self, written: list[str], wanted: list[str]) -> dict[str, float]:
        """``rougeL``, ``rouge1``, ``rouge2``."""
        from .metrics import Rouge

        return Rouge().compute(predictions=written, references=wanted)

    def measure(self, predictions: np.ndarray, labels: np.ndarray, unseen: Cells) -> dict[str, float]:
        """Not defined, because the texts are needed; see :meth:`score`."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Summarization(Text2TextGeneration):
    """Generate a summary with an encoder-decoder; see :class:`Text2TextGeneration` for the arguments."""

    type: ClassVar[str] = "summarization"
    source_column: str = "document"
    target_column: str = "summary"


@dataclass(kw_only=True)
class Translation(Text2TextGeneration):
    """Translate with an encoder-decoder; see :class:`Text2TextGeneration` for the arguments."""

    type: ClassVar[str] = "translation"

    @property
    def metric_names(self) -> list[str] | None:
        """See :class:`Task`."""
        return ["chrf", "bleu"]

    def text_metrics(self, written: list[str], wanted: list[str]) -> dict[str, float]:
        """``chrf`` and ``bleu``, from 0 to 1."""
        from .metrics import Translations

        return Translations().compute(predictions=written, references=wanted)


register_task(Text2TextGeneration)
register_task(Summarization)
register_task(Translation)
