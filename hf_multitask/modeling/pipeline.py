"""``pipeline("multitask", ...)``: one input in, what every task says about it out, on one pass of the backbone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import Pipeline

from .finite import check_weights
from .inputs import Encoder, padded
from .readers import MaskReader, Reading, WritingReader, reader_of

_INPUTS = "a text or a dict with 'text', 'question' and 'context', or 'question' and 'choices'"


class MultiTaskPipeline(Pipeline):
    """Answers of all tasks that take the input, or of some of them.

    An input is a string, a list of words, or a dict: ``{"text": ..., "text_pair": ...}`` for tasks on pairs,
    ``{"question": ..., "context": ...}``, ``{"question": ..., "choices": [...]}``. ``tasks=["ner"]`` asks some of the
    tasks only, ``generate_kwargs={...}`` goes to ``generate`` of those that write.

    Returns:
        A dict by task: a label with its score, a list of spans or tags, or whatever the task's type gives.

    Raises:
        ValueError: a weight of the model is NaN or infinite.
    """

    tokenizer: Any
    model: Any
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_weights(self.model, "so its answers would mean nothing. Take an earlier checkpoint, or train it again.")

    def _sanitize_parameters(
        self, tasks: list[str] | None = None, generate_kwargs: dict[str, Any] | None = None, **_: Any
    ) -> tuple[dict[str, Any], ...]:
        if isinstance(tasks, str):
            tasks = [tasks]
        for name in tasks or []:
            self.model.config.task(name)
        return {} if tasks is None else {"tasks": tasks}, dict(generate_kwargs or {}), {}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Answer for one input or a list of inputs; a list of words is one input inside such a list.

        A list is batched by length and answered in its own order; a generator is batched as it comes.
        """
        if not isinstance(inputs, Sequence) or isinstance(inputs, str):
            return super().__call__(inputs, **kwargs)
        inputs = list(inputs)  # a column of a dataset, a tuple
        order = sorted(range(len(inputs)), key=lambda number: _length(inputs[number]), reverse=True)
        answers = super().__call__([inputs[number] for number in order], **kwargs)
        placed = dict(zip(order, answers, strict=True))
        return [placed[number] for number in range(len(inputs))]

    def preprocess(self, inputs: Any, tasks: list[str] | None = None) -> dict[str, Any]:
        """One input to what each task reads of it."""
        row = inputs if isinstance(inputs, Mapping) else {"text": inputs}
        if all(row.get(key) is None for key in ("text", "question")):
            raise ValueError(f"An input should be {_INPUTS}. Found {inputs!r}.")
        config = self.model.config
        readings = {}
        for task in config.tasks:
            name, reader = task["name"], reader_of(task)
            if tasks is None or name in tasks:
                encoder = self._encoder(task)
                if reader.accepts(task, row, encoder):
                    readings[name] = reader.read(task, row, encoder)
        wrong = [name for name in tasks or [] if name not in readings]
        if wrong or not readings:
            task = config.task(wrong[0] if wrong else config.task_names[0])
            takes = reader_of(task).takes(task)
            raise ValueError(f"Task '{task['name']}' takes {takes}. Change the input, or name other tasks.")
        return {"readings": readings}

    def _encoder(self, task: dict[str, Any]) -> Encoder:
        """The encoder of a task, shared by those that read alike, so that a text is tokenised once."""
        codes = [task.get(key) for key in ("max_length", "language", "source_lang", "target_lang")]
        encoders = self.__dict__.setdefault("_encoders", {})
        key = (*codes, id(self.tokenizer))
        if key not in encoders:
            encoders[key] = Encoder(self.tokenizer, self.model.config.backbone_config, task)
        return encoders[key]

    def _ensure_tensor_on_device(self, inputs: Any, device: Any) -> Any:  # noqa: ARG002
        """What is read holds no tensors: batches are made of it where the model is."""
        return inputs

    @torch.no_grad()
    def _forward(self, input_tensors: dict[str, Any], **generate_kwargs: Any) -> dict[str, Any]:
        batched = isinstance(input_tensors["readings"], list)
        items = input_tensors["readings"] if batched else [input_tensors["readings"]]
        answers: list[dict[str, Any]] = [{} for _ in items]
        self._read(items, answers)
        self._write(items, answers, generate_kwargs)
        ordered = [
            {name: answer[name] for name in self.model.config.task_names if name in answer} for answer in answers
        ]
        return {"answers": ordered if batched else ordered[0]}

    def _read(self, items: list[dict[str, Reading]], answers: list[dict[str, Any]]) -> None:
        """Answers from one pass over all different texts of some inputs."""
        rows: list[dict[str, list[int]]] = []
        places: dict[Any, list[int]] = {}
        owners: dict[str, list[tuple[int, list[int]]]] = {}  # by task, the inputs and their rows of the batch
        for number, readings in enumerate(items):
            for name, reading in readings.items():
                if isinstance(reader_of(self.model.config.task(name)), WritingReader):
                    continue
                if reading.key not in places:
                    places[reading.key] = list(range(len(rows), len(rows) + len(reading.rows)))
                    rows += reading.rows
                owners.setdefault(name, []).append((number, places[reading.key]))
        if not rows:
            return
        batch = {key: value.to(self.device) for key, value in padded(self.tokenizer, rows).items()}
        task_rows, labels = {}, {}
        for name, own in owners.items():
            most = max(len(of_item) for _, of_item in own)
            table = torch.tensor([of_item + [-1] * (most - len(of_item)) for _, of_item in own], device=self.device)
            task_rows[name] = table if self.model.heads[name].reads_several else table[:, 0]
            reader = reader_of(self.model.config.task(name))
            if isinstance(reader, MaskReader):
                labels[name] = reader.labels(batch["input_ids"][task_rows[name]], self.tokenizer)
        logits = self.model(**batch, tasks=list(owners), task_rows=task_rows, labels=labels or None).logits
        for name, own in owners.items():
            task = self.model.config.task(name)
            of_items: Any = logits[name].float().cpu()
            if name in labels:
                of_items = of_items.split((labels[name] == 0).sum(1).tolist())
            for (number, _), of_item in zip(own, of_items, strict=True):
                rest = items[number][name].rest
                answers[number][name] = reader_of(task).answer(task, of_item, rest, self.model, self.tokenizer)

    def _write(self, items: list[dict[str, Reading]], answers: list[dict[str, Any]], kwargs: dict[str, Any]) -> None:
        """Answers of the tasks that write."""
        for task in self.model.config.tasks:
            name, reader = task["name"], reader_of(task)
            own = [number for number, readings in enumerate(items) if name in readings]
            if not own or not isinstance(reader, WritingReader):
                continue
            side = "left" if self.model.heads[name].language_model == "causal" else None
            rows = [items[number][name].rows[0] for number in own]
            batch = {key: value.to(self.device) for key, value in padded(self.tokenizer, rows, side).items()}
            texts = reader.write(self.model, task, batch, self.tokenizer, **kwargs)
            for number, text in zip(own, texts, strict=True):
                answers[number][name] = reader.text(task, items[number][name].rest, text)

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, Any]:
        """The answers for one input, by task."""
        return model_outputs["answers"]


def _length(value: Any) -> int:
    """Characters of an input, whatever its form."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        value = value.values()
    return sum(map(_length, value)) if isinstance(value, Iterable) else 0
