"""``pipeline("multitask", ...)``: one text in, what every task says about it out, on one pass of the backbone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Pipeline
from transformers.utils import logging

from .decoding import token_words
from .inputs import as_text, cut_rows, encode, input_names, longest_input, text_columns

logger = logging.get_logger(__name__)


class MultiTaskPipeline(Pipeline):
    """Answers of all tasks, or of some, about a text or a pair of texts.

    An input is a string, a list of words, or ``{"text": ..., "text_pair": ...}``; tasks on pairs answer for pairs, the
    others for single texts. ``tasks=["ner"]`` asks some of the tasks only.

    Returns:
        A dict by task: a label with its score, a list of spans or tags, or whatever the task's type gives.
    """

    tokenizer: Any
    model: Any
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def _sanitize_parameters(self, tasks: list[str] | None = None, **_: Any) -> tuple[dict[str, Any], ...]:
        if isinstance(tasks, str):
            tasks = [tasks]
        for name in tasks or []:
            self.model.config.task(name)
        return {} if tasks is None else {"tasks": tasks}, {}, {}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Answer for one input or a list of inputs; a list of words is one input inside such a list."""
        if isinstance(inputs, Sequence) and not isinstance(inputs, str):
            inputs = list(inputs)  # a column of a dataset, a tuple
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs: Any, tasks: list[str] | None = None) -> dict[str, Any]:
        """One input to the model's inputs, and what is needed to read its answer."""
        row = inputs if isinstance(inputs, Mapping) else {"text": inputs}
        if row.get("text") is None:
            raise ValueError(f"An input should be a text or a dict with 'text'. Found {inputs!r}.")
        text = as_text(row["text"])
        pair = None if row.get("text_pair") is None else as_text(row["text_pair"])
        config = self.model.config
        names = [
            name for name in config.task_names if (text_columns(config.task(name))[1] is not None) == (pair is not None)
        ]
        wrong = [name for name in tasks or [] if name not in names]
        if wrong or not names:
            name = wrong[0] if wrong else config.task_names[0]
            needs = "single texts" if pair is not None else "pairs, {'text': ..., 'text_pair': ...}"
            raise ValueError(f"Task '{name}' takes {needs}. Change the input, or name other tasks.")
        names = [name for name in names if tasks is None or name in tasks]
        limits = [task["max_length"] for task in map(config.task, names) if task.get("max_length")]
        limit = longest_input(self.tokenizer, config.backbone_config, min(limits, default=None))
        texts, pairs = [text], None if pair is None else [pair]
        encoding = encode(self.tokenizer, texts, pairs, limit, return_offsets_mapping=self.tokenizer.is_fast)
        if cut_rows(self.tokenizer, encoding, texts, pairs, limit)[0]:
            logger.warning(f"An input is longer than {limit} tokens and was cut.")
        taken = input_names(self.tokenizer, config.backbone_config)
        tensors = {key: torch.tensor(encoding[key]) for key in taken if key in encoding}
        return {**tensors, "row": (names, text, token_words(encoding) if self.tokenizer.is_fast else [])}

    def _forward(self, input_tensors: dict[str, Any], **_: Any) -> dict[str, Any]:
        row = input_tensors.pop("row")
        names = sorted({name for one in (row if isinstance(row, list) else [row]) for name in one[0]})
        logits = self.model(**input_tensors, tasks=names).logits
        return {"row": row, **{f"logits_{name}": logits[name] for name in names}}

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, Any]:
        """The model's outputs for one input to what a person reads, by task."""
        names, text, words = model_outputs["row"]
        return {
            name: self.model.decode(name, model_outputs[f"logits_{name}"][0].float().cpu(), text, words)
            for name in names
        }
