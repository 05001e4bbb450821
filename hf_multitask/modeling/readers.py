"""What a type of task reads of an input of the pipeline, and what it answers: the contract of readers and decoders."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import AutoTokenizer, BatchEncoding, PreTrainedConfig

from .aliases import Open, Settings, TaskDict, Values
from .chunks import Chunk
from .columns import joined_columns, joined_text, text_columns
from .config import FORMAT_VERSION
from .examples import ONE, PAIR, Example
from .inputs import Encoder, as_text, padded, rows_of
from .processors import tokenizer_of
from .words import first_tokens, joined, running_words, trimmed

Row = Settings
TEXTS = "text"  # the modality of a reader that names no other

# For each token its word, None for special ones, and the characters it covers: (word, start, end).
TokenWords = list[tuple[int | None, int, int]]

# The task's dict, the logits of one row, its text and the words of its tokens, to what a person reads.
Decoder = Callable[[TaskDict, torch.Tensor, str, TokenWords], Open]


@dataclass(frozen=True)
class Reading:
    """What a task reads of one input.

    Args:
        rows: model inputs of the texts, one or more, each under a key that is the same for tasks that read the same,
            which then share the pass of the backbone.
        rest: what the answer needs beside the logits.
        cut: whether the input was longer than the limit, for readers of another modality than text.
        chunks: of rows that are chunks of one recording, what each is.
    """

    rows: list[tuple[Hashable, Values]]
    rest: Open
    cut: bool = False
    chunks: list[Chunk] | None = None


def token_words(encoding: BatchEncoding) -> TokenWords:
    """The words that a fast tokenizer finds in the first row of an encoding made with ``return_offsets_mapping``."""
    offsets = encoding["offset_mapping"][0]
    return [(word, start, end) for word, (start, end) in zip(encoding.word_ids(0), offsets, strict=True)]


class Reader:
    """Texts, and pairs of texts for tasks that take pairs; the answer is the type's decoder's.

    A reader of another modality names it, what it reads and what it makes, and overrides :meth:`processor`,
    :meth:`encoder`, :meth:`padded`, :meth:`read` and, unless its type has a decoder, :meth:`answer`.
    Training reads its rows by :meth:`read`, as the pipeline does.
    """

    modality: ClassVar[str] = TEXTS
    # The keys of the pipeline's input that it reads, whose data are in `<key>_column`; of texts the first is needed.
    fields: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    # The model inputs that it makes. The first one has the length of a row, and rows of one batch are padded together.
    input_names: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "token_type_ids")
    # What its limit is counted in, for messages.
    unit: ClassVar[str] = "tokens"
    # How much of its length costs a forward pass about as much as a token.
    grain: ClassVar[int] = 1
    # Dimensions of a row's first input: 1 for tokens (L,), 2 for frames of features (L, F).
    dimensions: ClassVar[int] = 1
    # Inputs as code, for cards: of single texts first, and of pairs where they differ.
    examples: ClassVar[tuple[Example, ...]] = (ONE, PAIR)
    # Lines that ask an exported model, below those that load it, where no pipeline of Transformers does.
    stock_code: ClassVar[str | None] = None
    # Whether the decoder reads the words of the tokens.
    reads_words: ClassVar[bool] = True
    # Whether it answers for the rows of its data as they are.
    answers_rows: ClassVar[bool] = True
    # Whether the backbone masks its rows at random in training.
    masked: ClassVar[bool] = False
    # Whether the answer is a text, which the backbone generates.
    writes: ClassVar[bool] = False

    def processor(self, given: object) -> Open:
        """What it reads with, of what a trainer or a pipeline is given: the tokenizer.

        Raises:
            ValueError: it is not there.
        """
        tokenizer = tokenizer_of(given)
        if tokenizer is None:
            raise ValueError(
                f"A task that reads texts needs a tokenizer, and {type(given).__name__} is not one and has none. "
                "Give the tokenizer of the backbone."
            )
        return tokenizer

    def load(self, name: str, **kwargs: Open) -> Open:
        """What it reads with, of a saved model or a backbone.

        Args:
            name: a folder, or an id of the Hub.
            kwargs: of ``from_pretrained``.
        """
        return AutoTokenizer.from_pretrained(name, **kwargs)

    def encoder(
        self, given: object, config: PreTrainedConfig, task: Row | None = None, format_version: int = FORMAT_VERSION
    ) -> Open:
        """What makes inputs of the backbone, an ``InputEncoder``.

        Args:
            given: see :meth:`processor`.
            config: the backbone's configuration.
            task: the task's dict.
            format_version: of the model.
        """
        return Encoder(self.processor(given), config, task, format_version)

    def most(self, given: object) -> int | None:  # noqa: ARG002
        """The length, padding included, that a forward pass of several rows has at most in training; None for any."""
        return None

    def padded(self, given: object, rows: Sequence[Settings], side: str = "right") -> dict[str, torch.Tensor]:
        """Model inputs of B rows as tensors (B, L, ...)."""
        return padded(self.processor(given), rows, side)

    def length(self, row: Row) -> int:
        """What a forward pass of a row of model inputs costs, in tokens of a text."""
        return -(-len(row[self.input_names[0]]) // self.grain)

    def row_of(self, value: object) -> Row | None:  # noqa: ARG002
        """An input of the pipeline that is not by key, as one that is; None where the reader does not read it so."""
        return None

    def columns(self, task: Row) -> dict[str, str]:
        """The columns of the data that it reads, by key of the pipeline's input."""
        if self.fields != Reader.fields:
            return {field: task.get(f"{field}_column") or field for field in self.fields}
        text, pair = text_columns(dict(task))
        return {"text": text, **({} if pair is None else {"text_pair": pair})}

    def example_of(self, task: Row) -> Example:
        """An input as code."""
        pair = text_columns(dict(task))[1] is not None
        return self.examples[-1 if pair else 0]

    def stock_example(self, task: Row, tokenizer: Open) -> tuple[str, str] | None:  # noqa: ARG002
        """A text that the exported model is asked in the pipeline of Transformers that serves the type, and further
        arguments of that pipeline as code; None if no pipeline serves it.
        """
        return None

    def stock_note(self, task: Row) -> str | None:  # noqa: ARG002
        """What of the task's answers the exported model does not give, in words; None if there is nothing."""
        return None

    def labels(self, inputs: Mapping[str, torch.Tensor], rows: torch.Tensor, given: object) -> torch.Tensor | None:  # noqa: ARG002
        """Labels that select some of the logits of some rows of a batch; None for all of them."""
        return None

    def takes(self, task: Row) -> str:
        """What the task takes, in words."""
        if self.fields != Reader.fields:
            return "{" + ", ".join(f"'{field}': ..." for field in self.fields) + "}"
        return "single texts" if text_columns(dict(task))[1] is None else "pairs, {'text': ..., 'text_pair': ...}"

    def accepts(self, task: Row, row: Row, encoder: Encoder) -> bool:  # noqa: ARG002
        """Whether the task can answer for the input."""
        if self.fields != Reader.fields:
            return all(row.get(field) is not None for field in self.fields)
        pair = text_columns(dict(task))[1] is not None
        return row.get("text") is not None and (row.get("text_pair") is not None) == pair

    def example(self, task: Row, row: Row) -> Values:
        """A row of the task's data as an input of the pipeline, in which several columns may be one text."""
        joined = joined_columns(task)
        return {
            key: joined_text([row[part] for part in joined[column]]) if column in joined else row[column]
            for key, column in self.columns(task).items()
        }

    def own_part(self, task: Row, given: Row, answer: Open) -> Open:  # noqa: ARG002
        """The part of an answer that is compared with a label, for types whose answers repeat their input."""
        return answer

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """The input as model inputs."""
        text = as_text(row["text"])
        if row.get("text_pair") is not None or not encoder.tokenizer.is_fast:
            pair = None if row.get("text_pair") is None else as_text(row["text_pair"])
            rows, encoding = self._encode(task, encoder, [text], None if pair is None else [pair])
            words = token_words(encoding) if encoder.tokenizer.is_fast else []
            return Reading([(("text", text, pair, encoder.limit, encoder.language), rows[0])], (text, words))
        stride = task.get("stride")
        windows = text_windows(text, encoder, stride or 0)
        if stride is None:
            self._tell_cut(task, encoder, len(windows) > 1)
            windows = windows[:1]
        return Reading(windows, (text, self._token_words(row["text"], text, encoder) if self.reads_words else []))

    def truncated(self, reading: Reading, dim: int | None) -> Reading:  # noqa: ARG002
        """A reading whose answer has only the first dimensions of an embedding, if some, of types that answer these."""
        return reading

    def answer(self, task: Row, logits: torch.Tensor, rest: Open, model: Open, tokenizer: Open) -> Open:  # noqa: ARG002
        """What a person reads of the logits of one item."""
        return model.decode(task["name"], logits, *rest)

    @staticmethod
    def _token_words(value: object, text: str, encoder: Encoder) -> TokenWords:
        """For each token of the first window its word, by the one notion of a word, for decoders of the user's own."""
        windows = encoder.windows(text)
        if encoder.format_version == 1:
            encoding, _ = encoder.encode_once([text])
            return token_words(encoding)
        units = (
            joined(value)[1]
            if isinstance(value, list | tuple)
            else running_words(text, encoder.tokenizer.all_special_tokens)
        )
        starts = sorted((token, unit) for unit, token in enumerate(first_tokens(windows.offsets, units)) if token >= 0)
        words: TokenWords = [(None, 0, 0)] * len(windows.rows[0]["input_ids"])
        place, current = 0, None
        for token in range(min(len(windows.offsets), len(words))):
            while place < len(starts) and starts[place][0] <= token:
                current = starts[place][1]
                place += 1
            start = windows.starts[0]
            if start <= token < start + windows.room:
                begin, end = trimmed(text, windows.offsets[token])
                words[windows.lead + token - start] = (current if end > begin else None, begin, end)
        return words

    def _encode(
        self, task: Row, encoder: Encoder, texts: list[str], pairs: list[str] | None = None
    ) -> tuple[list[Values], BatchEncoding]:
        encoding, cut = encoder.encode_once(texts, pairs)
        self._tell_cut(task, encoder, cut)
        return rows_of(encoder.inputs(encoding)), encoding

    def _tell_cut(self, task: Row, encoder: Encoder, cut: bool) -> None:
        if cut:
            encoder.tell(
                f"Task '{task['name']}': an input is longer than {encoder.limit} tokens and was cut; this is said "
                "once. The task's max_length sets the limit"
                f"{self.reads_whole(task)}."
            )

    def reads_whole(self, task: Row) -> str:  # noqa: ARG002
        """What has long texts read whole, the end of a sentence; empty where nothing does."""
        return ""


def text_windows(text: str, encoder: Encoder, stride: int) -> list[tuple[Hashable, dict[str, list[int]]]]:
    """The rows of a text, with keys by which tasks share them; the first row is the same whatever the stride."""
    key = ("text", text, None, encoder.limit, encoder.language)
    rows = encoder.windows(text, stride).rows
    return [(key if not number else (*key, stride, number), row) for number, row in enumerate(rows)]


def window_stride(task: Row, limit: int | None) -> int:
    """Tokens by which the windows of a long text overlap, for a task that tags: a quarter of a window unless given."""
    return task["stride"] if task.get("stride") is not None else (limit or 0) // 4
