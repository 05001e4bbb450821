"""A second modality in small: recordings, a feature extractor that makes frames of them, and a backbone of both."""

import json
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModel, FeatureExtractionMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

SIZE = 3  # numbers of a frame

# What a user would write: the file of the reader travels, that of the task stays at home.
READER = '''
import torch

from hf_multitask.modeling.decoding import decode_sequence
from hf_multitask.modeling.inputs import InputEncoder
from hf_multitask.modeling.readers import Reader, Reading


class FrameReader(Reader):
    """A recording, as frames of features."""

    modality = "frames"
    fields = ("recording",)
    input_names = ("input_features", "attention_mask")
    dimensions = 2
    unit = "frames"

    def processor(self, given):
        return getattr(given, "feature_extractor", given)

    def encoder(self, given, config, task=None, format_version=2):
        return InputEncoder(self.processor(given), config, self.input_names, limit=(task or {}).get("max_length"))

    def padded(self, given, rows, side="right"):
        longest = max(len(row["attention_mask"]) for row in rows)
        frames = torch.zeros(len(rows), longest, self.processor(given).feature_size)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for number, row in enumerate(rows):
            length = len(row["attention_mask"])
            frames[number, :length] = torch.tensor(row["input_features"])
            mask[number, :length] = 1
        return {"input_features": frames, "attention_mask": mask}

    def read(self, task, row, encoder):
        frames = encoder.processor(row["recording"])
        cut = encoder.limit is not None and len(frames) > encoder.limit
        frames = frames[: encoder.limit]
        inputs = {"input_features": frames, "attention_mask": [1] * len(frames)}
        return Reading([(("frames", tuple(row["recording"])), inputs)], None, cut)

    def answer(self, task, logits, rest, model, processor):
        return decode_sequence(dict(task), logits, "", [])
'''
TASK = '''
from dataclasses import dataclass
from typing import ClassVar

from frame_reader import FrameReader

from hf_multitask import SequenceClassification, register_task
from hf_multitask.modeling.heads import SequenceClassificationHead


@dataclass(kw_only=True)
class Frames(SequenceClassification):
    """A label for a recording; `text_column` is what was said, and none of the inputs."""

    type: ClassVar[str] = "frame-classification"
    recording_column: str = "recording"


register_task(Frames, head=SequenceClassificationHead, reader=FrameReader)
'''


class FrameExtractor(FeatureExtractionMixin):
    """Numbers to frames of so many of them."""

    model_input_names = ["input_features", "attention_mask"]  # noqa: RUF012

    def __init__(self, feature_size: int = SIZE, **kwargs) -> None:
        self.feature_size = feature_size
        super().__init__(**kwargs)

    def __call__(self, recording: list[float]) -> list[list[float]]:
        whole = len(recording) // self.feature_size * self.feature_size
        return [recording[start : start + self.feature_size] for start in range(0, whole, self.feature_size)]


class Both:
    """A processor that holds a tokenizer and a feature extractor."""

    def __init__(self, tokenizer, feature_extractor) -> None:
        self.tokenizer, self.feature_extractor = tokenizer, feature_extractor

    def to_dict(self) -> dict:
        return self.feature_extractor.to_dict()

    def save_pretrained(self, folder) -> None:
        self.tokenizer.save_pretrained(folder)
        (Path(folder) / "both.json").write_text(json.dumps(self.to_dict(), default=str))


class FramesConfig(PreTrainedConfig):
    """Of :class:`FramesModel`."""

    model_type = "toy-frames"
    vocab_size: int = 600
    hidden_size: int = 16
    feature_size: int = SIZE
    hidden_dropout_prob: float = 0.0


class FramesModel(PreTrainedModel):
    """A state for every token or frame: of itself, and of the mean of all that are there."""

    config_class = FramesConfig
    base_model_prefix = "toy"

    def __init__(self, config) -> None:
        super().__init__(config)
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.frames = torch.nn.Linear(config.feature_size, config.hidden_size)
        self.mix = torch.nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids=None, attention_mask=None, input_features=None, **kwargs):
        hidden = (
            self.words(input_ids)
            if input_features is None
            else self.frames(input_features.to(self.frames.weight.dtype))
        )
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        both = torch.cat([hidden, mean.expand_as(hidden)], -1)
        return BaseModelOutput(last_hidden_state=self.mix(both).tanh())


AutoConfig.register(FramesConfig.model_type, FramesConfig, exist_ok=True)
AutoModel.register(FramesConfig, FramesModel, exist_ok=True)


def recordings(count: int, seed: int = 0) -> Dataset:
    """Recordings of several lengths, high ones and low ones; every seventh has no label."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        length = SIZE * int(torch.randint(2, 12, (1,), generator=draw))
        high = number % 2
        sound = (torch.randn(length, generator=draw) * 0.3 + (1 if high else -1)).tolist()
        label = None if number % 7 == 6 else ["low", "high"][high]
        rows.append({"recording": sound, "label": label, "text": "what was said"})
    return Dataset.from_list(rows)
