"""Tiny random speech encoders, and recordings made of tones."""

import io
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from datasets import Dataset
from tokenizers import pre_tokenizers
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModel,
    Data2VecAudioConfig,
    HubertConfig,
    SeamlessM4TFeatureExtractor,
    SpeechT5Config,
    SpeechT5FeatureExtractor,
    SpeechT5ForSpeechToText,
    SpeechT5Processor,
    SpeechT5Tokenizer,
    Trainer,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

RATE = 8000
WIDE = 16000  # of those whose spectrograms have frequencies of up to 8 kHz
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
FAMILIES = {
    "wav2vec2": Wav2Vec2Config,
    "hubert": HubertConfig,
    "wavlm": WavLMConfig,
    "data2vec-audio": Data2VecAudioConfig,
}
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


def save_whisper(folder, dropout=0.0, scale=1.0):
    """A random Whisper for recordings of a second, with its processor; a scale of its weights has it write more."""
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]  # fmt: skip
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, *special])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    end, start = (vocabulary[token] for token in special[:2])
    config = WhisperConfig(
        vocab_size=len(vocabulary),
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        max_source_positions=50,
        max_target_positions=40,
        dropout=dropout,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    model.save_pretrained(folder)
    whisper_processor(tokenizer).save_pretrained(folder)
    return str(folder)


def whisper_processor(tokenizer):
    """With a feature extractor of spectrograms of a second."""
    extractor = WhisperFeatureExtractor(feature_size=16, sampling_rate=WIDE, chunk_length=1)
    return WhisperProcessor(extractor, tokenizer)


def save_speecht5(folder):
    """A random SpeechT5 with its processor, whose tokens are characters."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    special = {"pad_id": 1, "bos_id": 0, "eos_id": 2, "unk_id": 3}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c", "abc"] * 10), model_writer=model, model_type="char", vocab_size=8, minloglevel=2, **special
    )  # fmt: skip
    (Path(folder) / "spm_char.model").write_bytes(model.getvalue())
    tokenizer = SpeechT5Tokenizer(str(Path(folder) / "spm_char.model"))
    options = {key: value for key, value in COMMON.items() if key in SpeechT5Config().to_dict()}
    config = SpeechT5Config(
        **{**options, "vocab_size": len(tokenizer), "encoder_layers": 2, "decoder_layers": 2},
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        positional_dropout=0.0,
        max_text_positions=40,
        max_speech_positions=200,
    )
    torch.manual_seed(0)
    SpeechT5ForSpeechToText(config).save_pretrained(folder)
    SpeechT5Processor(SpeechT5FeatureExtractor(sampling_rate=WIDE), tokenizer).save_pretrained(folder)
    return str(folder)


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


def changed(rows, number, **cells):
    """The rows with other cells in one of them."""
    return Dataset.from_list([{**row, **cells} if place == number else row for place, row in enumerate(rows)])


class InOrder(Trainer):
    """The plain Trainer on rows as they come."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def losses(trainer):
    """The losses that a trainer has logged."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def save_frame_encoder(folder, bands=16, **options):
    """A random Wav2Vec2-BERT, which reads frames, with its feature extractor."""
    config = Wav2Vec2BertConfig(
        feature_projection_input_dim=2 * bands,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        conv_depthwise_kernel_size=5,
        classifier_proj_size=16,
        position_embeddings_type="relative_key",
        left_max_position_embeddings=8,
        right_max_position_embeddings=4,
        layerdrop=0.0,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        conformer_conv_dropout=0.0,
        mask_time_prob=0.0,
        apply_spec_augment=False,
        vocab_size=4,
        pad_token_id=0,
        **options,
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    SeamlessM4TFeatureExtractor(feature_size=bands, num_mel_bins=bands).save_pretrained(folder)
    return str(folder)
