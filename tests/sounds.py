"""Tiny random speech encoders, and recordings made of tones."""

import io

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModel,
    HubertConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
)

RATE = 8000
COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 4, 4),
    "conv_stride": (5, 4, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "vocab_size": 32,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "ctc_loss_reduction": "mean",
}
FAMILIES = {"wav2vec2": Wav2Vec2Config, "hubert": HubertConfig, "wavlm": WavLMConfig}
LETTERS = "abc"
SPEAKERS = ("high", "low")


def save_encoder(folder, family="wav2vec2", **options):
    """A random encoder with its feature extractor, in float32 as all are."""
    torch.manual_seed(0)
    AutoModel.from_config(FAMILIES[family](**{**COMMON, **options})).save_pretrained(folder)
    extractor().save_pretrained(folder)
    return str(folder)


def extractor():
    """Of waveforms at :data:`RATE`."""
    return Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True, return_attention_mask=True)


def batch_of(rows):
    """The inputs of a stock model for some rows."""
    waves = [np.asarray(row["audio"]["array"], np.float32) for row in rows]
    return extractor()(waves, sampling_rate=RATE, padding=True, return_tensors="pt")


def tone(word, speaker, draw, rate=RATE):
    """A word as a tone for each letter, of a speaker whose tones are high or low, with noise."""
    parts = []
    for letter in word:
        length = int(rate * draw.uniform(0.03, 0.06))
        pitch = 300 * (1 + LETTERS.find(letter)) * (2.2 if speaker == "high" else 1.0)
        parts += [np.sin(2 * np.pi * pitch * np.arange(length) / rate), np.zeros(int(rate * 0.01))]
    sound = np.concatenate(parts)
    return (sound + 0.01 * draw.standard_normal(len(sound))).astype(np.float32)


def recordings(count, seed=0, rate=RATE, equal=None):
    """Rows with audio as arrays, a speaker, the first letter as label, and the word; every seventh has no speaker."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        word = "".join(draw.choice(list(LETTERS), draw.integers(1, 4)))
        speaker = SPEAKERS[number % 2]
        sound = tone(word, speaker, draw, rate)
        if equal is not None:
            sound = np.resize(sound, equal)
        label = None if number % 7 == 6 else speaker
        audio = {"array": sound.tolist(), "sampling_rate": rate}
        rows.append({"audio": audio, "speaker": label, "letter": word[0], "text": word})
    return Dataset.from_list(rows)


def wav(samples, rate=RATE, kind="WAV", subtype=None):
    """The bytes of a file."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples), rate, format=kind, subtype=subtype)
    return file.getvalue()
