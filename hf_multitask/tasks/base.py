"""What every task type has: its arguments, its labels in a dataset, alignment, collation and metrics."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..modeling.config import close_match
from ..modeling.inputs import WINDOWS, as_text, text_columns
from ..modeling.kinds import reader_of
from ..modeling.readers import TEXTS
from .encodings import RowEncodings, read_rows
from .sources import code_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from ..modeling.inputs import Encoder
    from ..modeling.readers import Reader


@dataclass(kw_only=True)
class Task(ABC):
    """One task: where its texts and labels are, and what its labels mean.

    A task is an argument list and no more: :meth:`to_dict` is what the model's configuration keeps, and the class is
    built from it again. It knows its own name, for messages, once :func:`build_task` has made it.

    A type of one's own is a dataclass derived from this one or from another task, made known by :func:`register_task`.
    It has a class attribute ``type``, its name, and names the column of its text in a field ``text_column``, or of its
    words in ``tokens_column``.

    Args:
        dataset: which dataset it reads; the one named like the task where None.
        max_length: tokens a row is cut to; the most that tokenizer and backbone take where None.
        language: of the texts, for backbones that are told it, as XLM by its ``lang2id``.
    """

    type: ClassVar[str]
    # Whether a row holds several texts, each an input of its own.
    several: ClassVar[bool] = False
    # Whether a row is changed at random whenever it is drawn, by :meth:`masked`.
    masks: ClassVar[bool] = False
    # Whether encode_labels reads the encoding's offset_mapping, which only a fast tokenizer makes.
    aligns_words: ClassVar[bool] = False
    # Whether a row's labels are those of its tokens, window by window where it has several.
    labels_tokens: ClassVar[bool] = False
    name: str | None = dataclasses.field(default=None, repr=False)
    dataset: str | None = None
    max_length: int | None = None
    language: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """See that a type which measures otherwise than the one that it derives from does not say that one's names."""
        super().__init_subclass__(**kwargs)
        if {"metrics", "score", "text_metrics"} & vars(cls).keys() and "metric_names" not in vars(cls):
            cls.metric_names = Task.metric_names  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        self.check_number("max_length", 1)

    def check_number(self, argument: str, least: int, *, none: bool = True) -> None:
        """See that an argument is a whole number of ``least`` or more, or None where that is allowed.

        Raises:
            ValueError: it is not.
        """
        value = getattr(self, argument)
        if (value is None and none) or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
            return
        unit = " of tokens" if "length" in argument or "size" in argument or "stride" in argument else ""
        raise self.error(
            f"`{argument}` should be a whole number{unit}, {least} or more. Found `{argument} = {value!r}`."
        )

    @property
    def source(self) -> str:
        """Name of the dataset this task reads."""
        return self.dataset or self.name or ""

    @property
    def reader(self) -> Reader:
        """What makes model inputs of its rows, as the pipeline does."""
        return reader_of({"type": self.type, "name": self.name})

    @property
    def text_columns(self) -> tuple[str, str | None]:
        """Columns of the text, and of the second text for pairs."""
        return text_columns(self.to_dict())

    @property
    @abstractmethod
    def target_column(self) -> str:
        """Column of the labels."""

    @property
    def keeps_rows(self) -> bool:
        """Whether a row of the data is a row that is drawn, neither split into several nor put together with others."""
        return True

    @property
    def input_columns(self) -> tuple[str | None, ...]:
        """Columns of what the model is fed."""
        reader = self.reader
        return self.text_columns if reader.modality == TEXTS else tuple(reader.columns(self.to_dict()).values())

    @property
    def columns(self) -> list[str]:
        """All columns it reads."""
        return [column for column in (*self.input_columns, self.target_column) if column]

    @property
    def input_key(self) -> tuple[Any, ...]:
        """What the model is fed: tasks with the same key share a row and a backbone pass. The source comes first."""
        return (self.source, *self.input_columns, self.max_length, self.language)

    @property
    def windows_key(self) -> Any:
        """How long texts are read in windows, the same for tasks that can share them; None where they are cut."""
        return None

    def stride_of(self, limit: int | None) -> int | None:  # noqa: ARG002
        """Tokens by which windows of ``limit`` tokens overlap; None where long texts are cut."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """Name, type and arguments as plain values."""
        return {"type": self.type, **dataclasses.asdict(self)}

    def code(self) -> str:
        """A hash of the files that define its class, where they are from outside the package, see :func:`code_of`."""
        return code_of(type(self))

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """See that the tokenizer can do what the task asks of it.

        Raises:
            ValueError: it cannot.
        """
        if self.aligns_words and not tokenizer.is_fast:
            raise self.error(
                f"the tokenizer {type(tokenizer).__name__} is a slow one, which does not know where a token stands in "
                "the text. Give a fast tokenizer."
            )
        special = tokenizer.num_special_tokens_to_add(self.text_columns[1] is not None)
        if self.max_length is not None and self.max_length <= special:
            raise self.error(
                f"`max_length` leaves no token of the text beside {special} special tokens. "
                f"Found `max_length = {self.max_length}`."
            )

    def check_extras(self) -> None:  # noqa: B027 - most types need none
        """See that the packages that its metrics need are installed; called before anything is trained.

        Raises:
            ValueError: one is not; the sentence says how to install it.
        """

    def error(self, sentence: str) -> ValueError:
        """An error whose sentence begins with this task's name."""
        return ValueError(f"Task '{self.name}': {sentence}" if self.name else f"{type(self).__name__}: {sentence}")

    def check_columns(self, dataset: Dataset, split: str) -> None:
        """See that the columns this task names are there.

        Raises:
            ValueError: one is missing.
        """
        for column in self.columns:
            if column not in dataset.column_names:
                raise self.error(
                    f"the {split} data has no column '{column}'; it has {', '.join(dataset.column_names) or 'none'}."
                    + (close_match(column, dataset.column_names) or " Name the right one in the task.")
                )

    def resolve(self, train: Dataset | None, others: Sequence[Dataset]) -> Task:  # noqa: ARG002
        """A copy in which labels that were left out are read from the data: training labels first, then the others.

        The task itself where it has nothing to read.

        Raises:
            ValueError: the target column does not hold labels of this type.
        """
        return self

    def reading(self, data: Sequence[Dataset]) -> Task:  # noqa: ARG002
        """A copy that knows how the labels of some data are written; the task itself where it knew before.

        Raises:
            ValueError: the task cannot read them.
        """
        return self

    @property
    def reads_numbers(self) -> bool:
        """Whether it gets the numbers of a ClassLabel column, and not the names."""
        return False

    def unseen(self, dataset: Dataset) -> list[Any]:  # noqa: ARG002
        """Labels of a dataset that the task does not know, sorted; they are numbered after the known ones."""
        return []

    def batch_rows(self, rows: dict[str, list[Any]], indices: list[int]) -> tuple[dict[str, list[Any]], list[int]]:
        """Rows of the data to those that are drawn: the same, unless a type puts several together."""
        return rows, indices

    def encode_inputs(
        self, rows: dict[str, list[Any]], indices: list[int], encoder: Encoder, split: str, *, offsets: bool
    ) -> tuple[dict[str, list[Any]], Any, list[bool]]:
        """The model inputs of a batch of rows, what :meth:`encode_labels` gets as ``encoding``, and which were cut.

        What is no text is read as the pipeline reads it, by the type's reader, whose readings are the ``encoding``.

        Args:
            rows: the columns, of the batch.
            indices: the rows' numbers in their dataset, for messages.
            encoder: makes inputs of texts.
            split: name of the split, for messages.
            offsets: whether a task reads where the tokens stand.
        """
        if self.reader.modality != TEXTS:
            task = {**self.to_dict(), "name": self.name}
            return read_rows(self.reader, task, rows, encoder, several=self.several)
        text, pair = self.text_columns
        texts = self.texts(rows[text], text, indices, split)
        pairs = None if pair is None else self.texts(rows[pair], pair, indices, split)
        found = encoder.encode(texts, pairs, return_offsets_mapping=offsets)
        encoding = RowEncodings(found.data, found.encodings)
        encoding.windows, encoding.notes = {}, {}
        inputs, cut = encoder.inputs(encoding), encoder.cut_rows(encoding, texts, pairs)
        if self.windows_key is not None:
            stride = self.stride_of(encoder.limit) or 0
            try:
                encoding.windows = {row: encoder.windows(texts[row], stride) for row, long in enumerate(cut) if long}
            except ValueError as problem:
                raise self.error(str(problem)) from None
            lengths = [[len(ids)] for ids in inputs["input_ids"]]
            for row, windows in encoding.windows.items():
                lengths[row] = [len(one["input_ids"]) for one in windows.rows]
                for name, values in inputs.items():
                    values[row] = [value for one in windows.rows for value in one[name]]
            inputs[WINDOWS] = lengths
        return inputs, encoding, cut

    def texts(self, values: list[Any], column: str, indices: list[int], split: str) -> list[str]:
        """The values of a column as texts.

        Raises:
            ValueError: one is none; the sentence names its row.
        """
        texts = []
        for value, index in zip(values, indices, strict=True):
            try:
                texts.append(as_text(value))
            except TypeError as problem:
                raise self.row_error(index, split, f"column '{column}': {problem}. Mend the row.") from None
        return texts

    def row_error(self, index: int, split: str, sentence: str) -> ValueError:
        """An error that names a row."""
        return self.error(f"row {index} of the {split} data, {sentence}")

    @abstractmethod
    def encode_labels(
        self, rows: dict[str, list[Any]], indices: list[int], encoding: BatchEncoding, unseen: list[Any], split: str
    ) -> list[Any]:
        """The labels of a batch of rows as numbers aligned to its encoding; None for a row without label.

        Args:
            rows: the target column, and the text columns, of the batch.
            indices: the rows' numbers in their dataset, for messages.
            encoding: their tokens.
            unseen: labels to number after the known ones; any other unknown label is an error.
            split: name of the split, for messages.

        Raises:
            ValueError: a row's label is unknown, or of the wrong kind; the sentence names the row.
        """

    def more_columns(
        self,
        rows: dict[str, list[Any]],  # noqa: ARG002
        labels: list[Any],  # noqa: ARG002
        encoding: Any,  # noqa: ARG002
        *,
        training: bool,  # noqa: ARG002
    ) -> dict[str, list[Any]]:
        """Further columns of a batch of rows beside its labels.

        ``gold`` is what evaluation compares answers with, where that is more than the labels; ``lost`` counts labels
        that no token carries, ``cut`` tells of labels that were cut.

        Args:
            rows: see :meth:`encode_labels`.
            labels: what that has made of them.
            encoding: see :meth:`encode_labels`.
            training: whether the rows are trained on.
        """
        return {}

    def collate(self, labels: list[Any], length: int, padding_side: str) -> torch.Tensor:  # noqa: ARG002
        """Labels of N rows as one tensor, (N,) or (N, ...); ``length`` is L, the width of the batch in tokens."""
        import torch

        return torch.tensor(labels)

    def masked(
        self,
        inputs: dict[str, Any],
        label: Any,
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
        generator: np.random.Generator,  # noqa: ARG002
    ) -> tuple[dict[str, Any], Any]:
        """Inputs and label of one row, changed at random."""
        return inputs, label

    def reduced(self, predictions: torch.Tensor) -> torch.Tensor:
        """What :meth:`score` needs of a batch's predictions: all of them, unless a type keeps less."""
        return predictions

    def score(
        self,
        predictions: np.ndarray,
        labels: np.ndarray,
        *,
        unseen: list[Any],
        references: Sequence[Any],  # noqa: ARG002
        loss: float,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> dict[str, float]:
        """Metrics of an evaluation, see :meth:`metrics`; types that need more than tensors override this.

        Args:
            predictions: what the head's ``predictions`` keeps, or the tokens that a task wrote; padded with -100.
            labels: as collated, padded with -100.
            unseen: see :meth:`metrics`.
            references: the labels as encoded, in the order of the predictions.
            loss: mean over all items.
            tokenizer: the backbone's.
        """
        return self.metrics(predictions, labels, unseen)

    def constant_loss(
        self,
        labels: Sequence[Any],  # noqa: ARG002
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """The loss of the best answer that does not read its input; None where the type does not know it.

        Args:
            labels: of the training data, as encoded.
            rows: the encoded rows.
            tokenizer: the backbone's.
        """
        return None

    @property
    def metric_names(self) -> list[str] | None:
        """Names of what :meth:`score` gives, the primary one first; None where the type, or its labels, do not say."""
        return None

    @abstractmethod
    def metrics(self, predictions: np.ndarray, labels: np.ndarray, unseen: list[Any]) -> dict[str, float]:
        """Metrics of logits against labels, the primary one first, which grows to 1 as the model gets better."""
