"""The base class of task types: arguments, labels of a dataset, alignment, collation and metrics."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..modeling.columns import text_columns
from ..modeling.config import close_match
from ..modeling.inputs import WINDOWS, as_text
from ..modeling.keywords import check_stride
from ..modeling.kinds import reader_of
from ..modeling.readers import TEXTS
from .encodings import RowEncodings, read_rows
from .joining import check_joined, stored_columns
from .layers import check_own_layer
from .measured import Measured
from .slicing import check_slice_columns
from .sources import code_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..modeling.inputs import Encoder
    from ..modeling.readers import Reader
    from .columns import Cells, Columns, Encoding, Inputs, Label, Labels, References, TaskDict


@dataclass(kw_only=True)
class Task(Measured):
    """A task: the columns of its texts and labels, and the meaning of its labels.

    A task consists of its arguments only: :meth:`to_dict` is stored in the configuration of the model, and the object
    is rebuilt from it. A task has a name, for messages, if it was created by :func:`build_task`.

    Your own task type is a dataclass derived from this class or from another task, and is registered with
    :func:`register_task`. Its class attribute ``type`` is the name of the type, and a field ``text_column`` is the
    column of its text, or ``tokens_column`` that of its words.

    Args:
        dataset: the dataset that it reads; that with the name of the task if None.
        max_length: tokens to which a row is truncated; the maximum of tokenizer and backbone if None.
        language: of the texts, for backbones with a language input, such as XLM with its ``lang2id``.
        weight_column: column of the weights of the rows in the loss, numbers of 0 or more; 1 for every row if None.
        layer: the layer that its head reads, as an index of the hidden states (0 for the embeddings), or ``"mix"`` for
            a learned mix of all; the last one if None.
        metrics: names of the metrics of its evaluations, the primary one first; those of the type if None.
        slice_columns: columns by whose values the metrics are reported as well.
    """

    type: ClassVar[str]
    # Whether a row contains several texts, each of which is a separate input.
    several: ClassVar[bool] = False
    # Whether a row is changed at random whenever it is drawn, see :meth:`masked`.
    masks: ClassVar[bool] = False
    # Whether encode_labels reads the offset_mapping of the encoding, which needs a fast tokenizer.
    aligns_words: ClassVar[bool] = False
    # What is reported of rows that an additional column marks, by its kind.
    remarks: ClassVar[Mapping[str, str]] = {}
    # What is reported of labels that are never answered, by the kind of the additional column that counts them.
    unreachable: ClassVar[Mapping[str, str]] = {
        "lost": "are of words or spans without a token of their own, so no token carries them"
    }
    # Whether the labels of a row are those of its tokens, by window if it has several.
    labels_tokens: ClassVar[bool] = False
    joins_texts: ClassVar[bool] = False  # whether text_column may be a list of columns
    groups_by_loss: ClassVar[bool] = False  # whether its encoded rows depend on the loss
    dataset: str | None = None
    max_length: int | None = None
    language: str | None = None
    weight_column: str | None = None
    layer: int | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("max_length", 1)
        check_joined(self)
        check_slice_columns(self)
        check_own_layer(self)

    def check_number(self, argument: str, least: int, *, none: bool = True) -> None:
        """Check that an argument is a whole number of at least ``least``, or None if that is allowed.

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
        """Name of the dataset that the task reads."""
        return self.dataset or self.name or ""

    @property
    def reader(self) -> Reader:
        """The reader that converts its rows to model inputs, as the pipeline does."""
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
    def label_columns(self) -> list[str]:
        """All columns of labels, for types that read more than one."""
        return [self.target_column]

    @property
    def keeps_rows(self) -> bool:
        """Whether rows of the data are drawn as they are, neither split nor combined."""
        return True

    @property
    def input_columns(self) -> tuple[str | None, ...]:
        """Columns of the model inputs."""
        reader = self.reader
        return self.text_columns if reader.modality == TEXTS else tuple(reader.columns(self.to_dict()).values())

    @property
    def columns(self) -> list[str]:
        """The columns of inputs and labels."""
        return stored_columns(self, *self.input_columns, *self.label_columns)

    @property
    def all_columns(self) -> list[str]:
        """All columns it reads: also that of weights."""
        return [*self.columns, *([] if self.weight_column is None else [self.weight_column])]

    @property
    def input_key(self) -> tuple[Hashable, ...]:
        """The key of the inputs: tasks with the same key share a row and a backbone pass. The source comes first."""
        return (self.source, *self.input_columns, self.max_length, self.language)

    @property
    def windows_key(self) -> Hashable:
        """The key of the windows of long texts, equal for tasks that can share them; None if texts are truncated."""
        return None

    def stride_of(self, limit: int | None) -> int | None:  # noqa: ARG002
        """Tokens by which windows of ``limit`` tokens overlap; None if long texts are truncated."""
        return None

    def to_dict(self) -> TaskDict:
        """Name, type and arguments as plain values."""
        return {"type": self.type, **dataclasses.asdict(self)}

    def code(self) -> str:
        """A hash of the files that define its class, where they are from outside the package, see :func:`code_of`."""
        return code_of(type(self))

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that the tokenizer supports the task.

        Raises:
            ValueError: it cannot.
        """
        if self.aligns_words and not tokenizer.is_fast:
            raise self.error(
                f"the tokenizer {type(tokenizer).__name__} is slow and does not return the positions of tokens in the "
                "text. Use a fast tokenizer."
            )
        special = tokenizer.num_special_tokens_to_add(self.text_columns[1] is not None)
        if self.max_length is not None and self.max_length <= special:
            raise self.error(
                f"`max_length` leaves no token for the text in addition to {special} special tokens. "
                f"Found `max_length = {self.max_length}`."
            )

    def check_extras(self) -> None:
        """Check that the packages of its metrics are installed; called before training.

        Raises:
            ValueError: a package is missing; the message says how to install it.
        """

    def check_columns(self, dataset: Dataset, split: str) -> None:
        """Check that the columns of the task exist.

        Raises:
            ValueError: a column is missing.
        """
        for column in self.all_columns:
            if column not in dataset.column_names:
                raise self.error(
                    f"the {split} data has no column '{column}'; it has {', '.join(dataset.column_names) or 'none'}."
                    + (close_match(column, dataset.column_names) or " Set the correct column in the task.")
                )

    def resolve(self, train: Dataset | None, others: Sequence[Dataset]) -> Task:  # noqa: ARG002
        """A copy with missing label names read from the data: training labels first, then the others.

        The result is the task itself if nothing is missing.

        Raises:
            ValueError: the target column does not contain labels of this type.
        """
        return self

    def reading(self, data: Sequence[Dataset]) -> Task:  # noqa: ARG002
        """A copy with the label format of some data; the task itself if the format is already known.

        Raises:
            ValueError: the task cannot read them.
        """
        return self

    @property
    def unknown(self) -> str | None:
        """The argument that has to be read from the data because it is missing, if there is one."""
        known = getattr(self, "label_names", ()) is not None or getattr(self, "problem_type", None) == "regression"
        return None if known else "label_names"

    @property
    def reads_numbers(self) -> bool:
        """Whether the task reads the numbers of a ClassLabel column, not the names."""
        return False

    def unseen(self, dataset: Dataset) -> Cells:  # noqa: ARG002
        """Labels of a dataset that are unknown to the task, sorted; they are numbered after the known ones."""
        return []

    def class_numbers(self, labels: pa.ChunkedArray) -> np.ndarray:
        """The numbers of the classes in encoded labels, in any order."""
        import pyarrow.compute as pc

        while hasattr(labels.type, "value_type"):
            labels = pc.list_flatten(labels)
        return labels.to_numpy()

    def stored(self, dataset: Dataset) -> Dataset:
        """The data as they are stored, where reading a column would decode it."""
        return dataset

    def located(self, dataset: Dataset, folders: Sequence[Path]) -> Dataset:  # noqa: ARG002
        """The data with the files that they name found relative to some folders, those of the data files."""
        return dataset

    def outside(self, dataset: Dataset) -> Hashable:  # noqa: ARG002
        """What its inputs depend on beside the data, such as files that they name."""
        return None

    def batch_rows(self, rows: Columns, indices: list[int]) -> tuple[Columns, list[int]]:
        """Convert rows of the data to the rows that are drawn: the same, unless a type combines rows."""
        return rows, indices

    def encode_inputs(
        self, rows: Columns, indices: list[int], encoder: Encoder, split: str, *, offsets: bool
    ) -> tuple[Columns, Encoding, list[bool]]:
        """The model inputs of a batch of rows, the ``encoding`` for :meth:`encode_labels`, and the truncated rows.

        Other data than text are read by the reader of the type, as in the pipeline; its readings are the ``encoding``.

        Args:
            rows: the columns, of the batch.
            indices: the indices of the rows in their dataset, for messages.
            encoder: converts texts to inputs.
            split: name of the split, for messages.
            offsets: whether a task reads the positions of the tokens.
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
            try:  # also where all texts are short
                check_stride(stride, encoder.limit, encoder.tokenizer.num_special_tokens_to_add())
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

    def texts(self, values: Cells, column: str, indices: list[int], split: str) -> list[str]:
        """The values of a column as texts.

        Raises:
            ValueError: a value is not a text; the message names its row.
        """
        texts = []
        for value, index in zip(values, indices, strict=True):
            try:
                texts.append(as_text(value))
            except TypeError as problem:
                raise self.row_error(index, split, f"column '{column}': {problem}. Fix the row.") from None
        return texts

    def row_error(self, index: int, split: str, sentence: str) -> ValueError:
        """An error whose message names a row."""
        return self.error(f"row {index} of the {split} data, {sentence}")

    def placeholder(self, row: Columns) -> object:  # noqa: ARG002
        """A label for a row without one, of which nothing but the prediction is used; each type has its own.

        For a type with several :attr:`label_columns`, the cells of each.
        """
        raise self.error(f"{self.type} predicts rows with a label only. Add the column '{self.target_column}'.")

    @abstractmethod
    def encode_labels(self, rows: Columns, indices: list[int], encoding: Encoding, unseen: Cells, split: str) -> Labels:
        """The labels of a batch of rows as numbers aligned with its encoding; None for a row without a label.

        Args:
            rows: the target column, and the text columns, of the batch.
            indices: the indices of the rows in their dataset, for messages.
            encoding: their tokens.
            unseen: labels that are numbered after the known ones; any other unknown label is an error.
            split: name of the split, for messages.

        Raises:
            ValueError: a label is unknown, or has the wrong type; the message names the row.
        """

    def more_columns(
        self,
        rows: Columns,  # noqa: ARG002
        labels: Labels,  # noqa: ARG002
        encoding: Encoding,  # noqa: ARG002
        *,
        training: bool,  # noqa: ARG002
    ) -> Columns:
        """Additional columns of a batch of rows.

        ``gold`` holds the references for evaluation if they are more than the labels; ``lost`` counts labels without a
        token, and ``cut`` marks labels that were truncated.

        Args:
            rows: see :meth:`encode_labels`.
            labels: the result of :meth:`encode_labels`.
            encoding: see :meth:`encode_labels`.
            training: whether the rows are for training.
        """
        return {}

    def collate(self, labels: Labels, length: int, padding_side: str) -> torch.Tensor:  # noqa: ARG002
        """Labels of N rows as one tensor, (N,) or (N, ...); ``length`` is L, the width of the batch in tokens."""
        import torch

        return torch.tensor(labels)

    def masked(
        self,
        inputs: Inputs,
        label: Label,
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
        generator: np.random.Generator,  # noqa: ARG002
    ) -> tuple[Inputs, Label]:
        """Inputs and label of one row, changed at random."""
        return inputs, label

    def constant_loss(
        self,
        labels: References,  # noqa: ARG002
        rows: Dataset,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
    ) -> float | None:
        """The loss of the best constant answer; None if the type does not define it.

        Args:
            labels: of the training data, as encoded.
            rows: the encoded rows.
            tokenizer: of the backbone.
        """
        return None
