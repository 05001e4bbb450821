"""``pipeline("multitask", ...)``: the answers of all tasks to an input, from one pass of the backbone."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from transformers import Pipeline

from .aliases import Open, Settings, TaskDict, Values
from .chats import keyed
from .chunks import LENGTH, STRIDE, Chunking
from .finite import check_weights
from .generation import check_generate_kwargs, generation_settings
from .keywords import check_keywords, check_sizes
from .kinds import reader_of
from .processors import Processors, agree_on_padding
from .readers import Reading
from .similarity import check_truncation
from .sound import SoundError

_INPUTS = "a text or a dict with 'text', 'question' and 'context', or 'question' and 'choices'"
_FIRST = ("text", "question", "messages")  # one of which such an input has
_KNOWN = ("tasks", "generate_kwargs", LENGTH, STRIDE, "truncate_dim", "batch_size", "num_workers")
_OPTION = "It is an option of the task, which the model's configuration holds."
_LOGITS = "model(**tokens).logits[task] holds the scores of all labels."
_LOADING = "Give it in model_kwargs={...} of pipeline(...)."
_BUILDING = "Give it to pipeline(...), which builds the pipeline."
# Arguments of Transformers' other pipelines and of loading, and where they are given here.
_ELSEWHERE = {
    "top_k": f"Label sets are answered with the score of every label, masks with five words; {_LOGITS}",
    "return_all_scores": _LOGITS,
    "function_to_apply": _LOGITS,
    "threshold": "Compare the scores of the answer with it.",
    "aggregation_strategy": "The labels of the task decide: span tags are answered as spans, others by word.",
    **dict.fromkeys(("stride", "doc_stride", "max_length", "max_answer_len", "max_answer_length"), _OPTION),
    **dict.fromkeys(("prefix", "src_lang", "tgt_lang", "source_lang", "target_lang"), _OPTION),
    **dict.fromkeys(("truncation", "padding"), "Texts are cut and padded by the limits of the task and the backbone."),
    **dict.fromkeys(("attn_implementation", "cache_dir", "quantization_config"), _LOADING),
    **dict.fromkeys(("device", "device_map", "dtype", "model", "tokenizer"), _BUILDING),
}


class InputError(ValueError):
    """One of several inputs that cannot be answered.

    Args:
        place: which one, counted from 0.
        reason: why, in a sentence.
    """

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(f"inputs[{place}]: {reason}")
        self.place, self.reason = place, reason


class MultiTaskPipeline(Pipeline):
    """Answers of all tasks that take the input, or of some of them.

    An input of a model that reads texts is a string, a list of words, or a dict: ``{"tokens": [...]}`` for a list of
    words, ``{"text": ..., "text_pair": ...}`` for tasks on pairs, ``{"question": ..., "context": ...}``,
    ``{"question": ..., "choices": [...]}``, or a chat, a list of messages with ``role`` and ``content``. An input of a
    model that reads recordings is a file name, the bytes of a file, samples at the rate of the feature extractor, or
    ``{"array": ..., "sampling_rate": ...}``.

    ``tasks=["ner"]`` asks some of the tasks only, ``generate_kwargs={...}`` goes to ``generate`` of those that write.
    ``chunk_length_s`` has ``automatic-speech-recognition`` by CTC and by Whisper read long recordings in chunks of so
    many seconds, which overlap by ``stride_length_s`` on each side, a sixth of a chunk where None.
    ``truncate_dim`` keeps the first dimensions of embeddings, as in sentence-transformers.

    Returns:
        A dict by task: a label with its score, a list of spans or tags, or the answer of the task's type.

    Raises:
        ValueError: a weight of the model is NaN or infinite.
    """

    tokenizer: Open
    model: Open
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = None  # what the tasks read with has to be there, see __init__
    _load_tokenizer = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As :class:`transformers.Pipeline`, with the arguments of a call as its defaults.

        Raises:
            TypeError: an argument is unknown.
            ValueError: a value is not usable, or there is no such task.
        """
        kwargs.pop("local_files_only", None)  # pipeline(...) has read it, and passes it on
        check_sizes(kwargs)
        super().__init__(*args, **kwargs)
        if self.task != "multitask" and self.task in self.model.config.task_names:
            raise ValueError(
                f"`task` is the kind of the pipeline, 'multitask'. Found '{self.task}'. To ask one task of the model, "
                f"give tasks=['{self.task}']."
            )
        self._chunking(self._preprocess_params)
        for task in self.model.config.tasks:
            reader_of(task).processor(self._given)
        agree_on_padding(self.model, self._given)
        check_weights(self.model, "so its answers would mean nothing. Take an earlier checkpoint, or train it again.")

    def _sanitize_parameters(
        self,
        tasks: Sequence[str] | None = None,
        generate_kwargs: Settings | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: float | Sequence[float] | None = None,
        truncate_dim: int | None = None,
        **unknown: Any,
    ) -> tuple[Values, ...]:
        if unknown:
            written = dict.fromkeys(generation_settings(), "Give it in generate_kwargs={...}.")
            check_keywords("The multitask pipeline", unknown, _KNOWN, written | _ELSEWHERE)
        if isinstance(tasks, str):
            tasks = [tasks]
        if tasks is not None:
            names = list(tasks) if isinstance(tasks, Iterable) and not isinstance(tasks, Mapping) else []
            if not names or any(not isinstance(name, str) for name in names):
                raise ValueError(f"`tasks` should be a list of one task name or more. Found `tasks = {tasks!r}`.")
            for name in names:
                self.model.config.task(name)
        if generate_kwargs is not None:
            self._check_generate_kwargs(generate_kwargs)
        check_truncation(truncate_dim, self.model.heads.values())
        given = {"tasks": None if tasks is None else names, LENGTH: chunk_length_s, STRIDE: stride_length_s}
        given["truncate_dim"] = truncate_dim
        reading = {name: value for name, value in given.items() if value is not None}
        return reading, dict(generate_kwargs or {}), {}

    def _chunking(self, reading: Values) -> Chunking | None:
        """How recordings are cut; None where they are not."""
        chunking = Chunking.of(reading)
        if chunking is not None and not any(head.joins_chunks for head in self.model.heads.values()):
            raise ValueError(
                f"`{LENGTH}` is for tasks of automatic-speech-recognition by CTC or Whisper, and the model has none. "
                "Leave it out."
            )
        return chunking

    def _check_generate_kwargs(self, given: object) -> None:
        if not isinstance(given, Mapping):
            raise TypeError(f"`generate_kwargs` should be a dict of arguments of generate. Found {given!r}.")
        if given and not any(reader_of(task).writes for task in self.model.config.tasks):
            raise ValueError("`generate_kwargs` are for tasks that write, and the model has none. Leave them out.")
        check_generate_kwargs("`generate_kwargs`", given, self.model.backbone)

    def __call__(self, inputs: object, **kwargs: Any) -> Open:
        """Answer for one input or a list of inputs; a list of words is one input inside such a list.

        A list is batched by length and answered in its own order; a generator is batched as it comes.

        Raises:
            InputError: one of several inputs cannot be answered; of a generator, when it is reached.
            TypeError: an argument is unknown, or the input is of another kind.
            ValueError: the input or a value is not usable.
        """
        check_sizes(kwargs)
        given = {name: value for name, value in kwargs.items() if name not in ("batch_size", "num_workers")}
        reading = self._preprocess_params | self._sanitize_parameters(**given)[0]
        self._chunking(reading)
        inputs = keyed(inputs)
        if isinstance(inputs, Iterator):
            return self._stream(inputs, reading, kwargs)
        if not isinstance(inputs, Sequence) or isinstance(inputs, str | bytes):
            return super().__call__(inputs, **kwargs)
        inputs = [keyed(one) for one in inputs]  # of a column of a dataset, a tuple
        if not inputs:
            return []
        order = sorted(range(len(inputs)), key=lambda number: _length(inputs[number]), reverse=True)
        try:
            answers = super().__call__([inputs[number] for number in order], **kwargs)
        except (ValueError, TypeError):
            self._name_place(enumerate(inputs), reading)
            raise
        placed = dict(zip(order, answers, strict=True))
        return [placed[number] for number in range(len(inputs))]

    def _stream(self, inputs: Iterator[object], reading: Values, kwargs: Values) -> Iterator[Values]:
        """The answers to inputs that come one after the other."""
        place, last = -1, None

        def noted(inputs: Iterable[object]) -> Iterator[object]:
            nonlocal place, last
            for place, last in enumerate(inputs):  # noqa: B007 - read where reading fails
                yield last

        for first in inputs:
            try:
                yield from super().__call__(noted(chain([first], inputs)), **kwargs)
            except (ValueError, TypeError):
                self._name_place([(place, last)], reading)
                raise

    def unusable(self, inputs: Sequence[object], **kwargs: Any) -> dict[int, str]:
        """By place, why a recording among some inputs cannot be used; other mistakes are left to a call."""
        reading = self._preprocess_params | self._sanitize_parameters(**kwargs)[0]
        found: dict[int, str] = {}
        for place, value in enumerate(inputs):
            try:
                self.preprocess(value, **reading)
            except SoundError as problem:
                found[place] = str(problem)
            except (ValueError, TypeError):
                continue
        return found

    def _name_place(self, numbered: Iterable[tuple[int, object]], reading: Values) -> None:
        """Say which input cannot be read, where an error is the fault of one."""
        for place, value in numbered:
            try:
                self.preprocess(value, **reading)
            except (ValueError, TypeError) as problem:
                raise InputError(place, str(problem)) from problem

    def preprocess(self, inputs: object, tasks: list[str] | None = None, **chunks: Any) -> Values:
        """One input to what each task reads of it."""
        chunking = self._chunking(chunks)
        row = self._row_of(inputs)
        if row.get("text") is None and row.get("tokens") is not None:
            row = {**row, "text": row["tokens"]}
        config = self.model.config
        others = {reader_of(task).fields[0] for task in config.tasks} - set(_FIRST)
        if all(row.get(key) is None for key in (*_FIRST, *others)):
            more = "".join(f", or a dict with '{key}'" for key in sorted(others))
            raise ValueError(f"An input should be {_INPUTS}{more}. Found {inputs!r}.")
        readings = {}
        for task in config.tasks:
            name: str = task["name"]
            reader: Any = reader_of(task)
            if tasks is None or name in tasks:
                encoder = self._encoder(task)
                if reader.accepts(task, row, encoder):
                    if chunking is not None and self.model.heads[name].joins_chunks:
                        readings[name] = reader.read_chunks(task, row, encoder, chunking)
                    else:
                        readings[name] = reader.truncated(reader.read(task, row, encoder), chunks.get("truncate_dim"))
        wrong = [name for name in tasks or [] if name not in readings]
        if wrong or not readings:
            task = config.task(wrong[0] if wrong else config.task_names[0])
            takes = reader_of(task).takes(task)
            raise ValueError(f"Task '{task['name']}' takes {takes}. Change the input, or name other tasks.")
        return {"readings": readings}

    def _row_of(self, inputs: object) -> Settings:
        """An input by key; one without keys is a text, or what else all tasks read."""
        inputs, readers = keyed(inputs), [reader_of(task) for task in self.model.config.tasks]
        if len({reader.modality for reader in readers}) == 1 and (row := readers[0].row_of(inputs)) is not None:
            return row
        return inputs if isinstance(inputs, Mapping) else {"text": inputs}

    @property
    def _given(self) -> object:
        """What the readers find their processors in."""
        if self.processor is not None or self.feature_extractor is None:
            return self.tokenizer if self.processor is None else self.processor
        return self.feature_extractor if self.tokenizer is None else Processors(self.tokenizer, self.feature_extractor)

    def _encoder(self, task: TaskDict) -> Open:
        """The encoder of a task, shared by those that read alike, so that a text is tokenized once."""
        codes = [task.get(key) for key in ("max_length", "language", "source_lang", "target_lang")]
        encoders = self.__dict__.setdefault("_encoders", {})
        reader, given = reader_of(task), self._given
        kind = (type(reader).processor, type(reader).encoder, reader.input_names[0])
        key = (*codes, self.model.config.format_version, *kind)
        if key not in encoders:
            config = self.model.config
            encoders[key] = reader.encoder(given, config.backbone_config, task, config.format_version)
        return encoders[key]

    def _ensure_tensor_on_device(self, inputs: Open, device: object) -> Open:  # noqa: ARG002
        """What is read holds no tensors: batches are made of it where the model is."""
        return inputs

    @torch.no_grad()
    def _forward(self, input_tensors: Values, **generate_kwargs: Any) -> Values:
        if self.model.training:  # as a model is after its training: answers have no dropout
            self.model.eval()
        batched = isinstance(input_tensors["readings"], list)
        items = input_tensors["readings"] if batched else [input_tensors["readings"]]
        answers: list[Values] = [{} for _ in items]
        for modality in dict.fromkeys(reader_of(task).modality for task in self.model.config.tasks):
            self._read(items, answers, modality)
        for item, answer in zip(items, answers, strict=True):
            self._read_chunks(item, answer, len(items))
        self._write(items, answers, generate_kwargs)
        ordered = [
            {name: answer[name] for name in self.model.config.task_names if name in answer} for answer in answers
        ]
        return {"answers": ordered if batched else ordered[0]}

    def _read(self, items: list[dict[str, Reading]], answers: list[Values], modality: str) -> None:
        """Answers from one pass over all different texts, or whatever the modality has, of some inputs."""
        given, padded = self._given, None
        rows: list[Values] = []
        places: dict[object, int] = {}
        owners: dict[str, list[tuple[int, list[int]]]] = {}  # by task, the inputs and their rows of the batch
        for number, readings in enumerate(items):
            for name, reading in readings.items():
                reader = reader_of(self.model.config.task(name))
                if reader.writes or reader.modality != modality or reading.chunks is not None:
                    continue
                padded = reader.padded
                for key, row in reading.rows:
                    if key not in places:
                        places[key] = len(rows)
                        rows.append(row)
                owners.setdefault(name, []).append((number, [places[key] for key, _ in reading.rows]))
        if padded is None:
            return
        batch = {key: value.to(self.device) for key, value in padded(given, rows).items()}
        task_rows, labels = {}, {}
        for name, own in owners.items():
            most = max(len(of_item) for _, of_item in own)
            table = torch.tensor([of_item + [-1] * (most - len(of_item)) for _, of_item in own], device=self.device)
            several = self.model.heads[name].reads_several or most > 1
            task_rows[name] = table if several else table[:, 0]
            asked = reader_of(self.model.config.task(name)).labels(batch, task_rows[name], given)
            if asked is not None:
                labels[name] = asked
        logits = self.model(**batch, tasks=list(owners), task_rows=task_rows, labels=labels or None).logits
        for name, own in owners.items():
            task = self.model.config.task(name)
            answered = logits[name].float().cpu()
            of_items: Iterable[torch.Tensor] = answered
            if name in labels:
                of_items = answered.split((labels[name] == 0).sum(1).tolist())
            for (number, _), of_item in zip(own, of_items, strict=True):
                rest = items[number][name].rest
                reader = reader_of(task)
                answers[number][name] = reader.answer(task, of_item, rest, self.model, reader.processor(given))

    def _read_chunks(self, readings: dict[str, Reading], answers: Values, most: int) -> None:
        """Answers of tasks that read an input in chunks, which they share, a few of them in a pass."""
        own = {
            name: reading
            for name, reading in readings.items()
            if reading.chunks is not None and not reader_of(self.model.config.task(name)).writes
        }
        if not own:
            return
        given, joined = self._given, {name: list[torch.Tensor]() for name in own}
        reading = next(iter(own.values()))
        frames = [chunk.frames for chunk in reading.chunks or ()]
        padded = reader_of(self.model.config.task(next(iter(own)))).padded
        for start in range(0, len(frames), most):
            rows = [row for _, row in reading.rows[start : start + most]]
            batch = {key: value.to(self.device) for key, value in padded(given, rows).items()}
            logits = self.model(**batch, tasks=list(own)).logits
            for name, parts in joined.items():
                of_chunks = zip(logits[name].float().cpu(), frames[start : start + most], strict=True)
                parts += [of_chunk[slice(*counted)] for of_chunk, counted in of_chunks]
        for name, parts in joined.items():
            task = self.model.config.task(name)
            reader = reader_of(task)
            processor = reader.processor(given)
            answers[name] = reader.answer(task, torch.cat(parts), own[name].rest, self.model, processor)

    def _write(self, items: list[dict[str, Reading]], answers: list[Values], kwargs: Values) -> None:
        """Answers of the tasks that write."""
        for task in self.model.config.tasks:
            name: str = task["name"]
            reader: Any = reader_of(task)
            if not reader.writes:
                continue
            own = []
            for number, readings in enumerate(items):
                if name in readings and readings[name].chunks is None:
                    own.append(number)
                elif name in readings:
                    text = reader.write_chunks(self.model, task, readings[name], self._given, len(items), **kwargs)
                    answers[number][name] = reader.text(task, readings[name].rest, text)
            if not own:
                continue
            side = "left" if self.model.heads[name].language_model == "causal" else "right"
            rows = [items[number][name].rows[0][1] for number in own]
            batch = {key: value.to(self.device) for key, value in reader.padded(self._given, rows, side).items()}
            texts = reader.write(self.model, task, batch, reader.processor(self._given), **kwargs)
            for number, text in zip(own, texts, strict=True):
                answers[number][name] = reader.text(task, items[number][name].rest, text)

    def postprocess(self, model_outputs: Values) -> Values:
        """The answers for one input, by task."""
        return model_outputs["answers"]


def _length(value: object) -> int:
    """Characters of an input, whatever its form."""
    if isinstance(value, str | bytes):
        return len(value)
    if hasattr(value, "shape"):
        return math.prod(value.shape)
    if isinstance(value, Mapping):
        value = value.values()
    return sum(map(_length, value)) if isinstance(value, Iterable) else 0
