"""Tiny random backbones with tokenizers of their own, and small pieces of the demo's real data."""

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from hf_multitask import MultiTaskModel, MultiTaskTrainingArguments, SequenceClassification, TokenClassification

DATA = Path(__file__).parent.parent / "examples" / "sentiment_ner" / "data"
VOCAB = 600
COMMON = {"vocab_size": VOCAB, "max_position_embeddings": 80, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}

CONFIGS = {
    "bert": lambda: BertConfig(**COMMON, **SIZES),
    "roberta": lambda: RobertaConfig(**COMMON, **SIZES, type_vocab_size=1),
    "distilbert": lambda: DistilBertConfig(**COMMON, dim=32, n_layers=2, n_heads=4, hidden_dim=37),
    "deberta-v2": lambda: DebertaV2Config(**COMMON, **SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "modernbert": lambda: ModernBertConfig(
        **COMMON, **SIZES, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, reference_compile=False
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_positions=80, n_embd=32, n_layer=2, n_head=4, bos_token_id=4, eos_token_id=4
    ),
}
BYTE_LEVEL = ("roberta", "modernbert", "gpt2")


def read_rows(task: str, split: str, count: int | None = None) -> list[dict]:
    lines = (DATA / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def make_tokenizer(byte_level: bool, causal: bool) -> PreTrainedTokenizerFast:
    texts = [row["text"] for row in read_rows("sentiment", "train", 400)]
    texts += [" ".join(row["tokens"]) for row in read_rows("ner", "train", 200)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|endoftext|>", "[MASK]"]
    if byte_level:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCAB, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=VOCAB, special_tokens=special)
    tokenizer.train_from_iterator(texts, trainer)
    if causal:
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            eos_token="<|endoftext|>",
            model_max_length=80,
            model_input_names=["input_ids", "attention_mask"],
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", "attention_mask"] if byte_level else ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=78,
        model_input_names=names,
    )


@pytest.fixture(scope="session")
def backbone_path(tmp_path_factory):
    """By family, a folder with a tiny random model and its tokenizer."""
    made: dict[str, str] = {}

    def make(family: str = "bert") -> str:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            AutoModel.from_config(CONFIGS[family]()).save_pretrained(folder)
            tokenizer = make_tokenizer(family in BYTE_LEVEL, family == "gpt2")
            if family == "distilbert":
                tokenizer.model_input_names = ["input_ids", "attention_mask"]
            tokenizer.save_pretrained(folder)
            made[family] = str(folder)
        return made[family]

    return make


@pytest.fixture
def tokenizer(backbone_path):
    return AutoTokenizer.from_pretrained(backbone_path("bert"))


@pytest.fixture
def tasks():
    return {
        "sentiment": SequenceClassification(label_names=["negative", "positive"]),
        "ner": TokenClassification(label_names=NER_LABELS),
    }


NER_LABELS = json.loads((DATA / "ner" / "info.json").read_text())["label_names"]


@pytest.fixture
def data():
    """By split, the first rows of both datasets, unequal in number."""

    def make(sentiment: int = 40, ner: int = 24, split: str = "train") -> dict[str, Dataset]:
        return {
            "sentiment": Dataset.from_list(read_rows("sentiment", split, sentiment)),
            "ner": Dataset.from_list(read_rows("ner", split, ner)),
        }

    return make


@pytest.fixture
def build_model(backbone_path, tasks):
    """A multi-task model on a tiny backbone, the same weights at every call."""

    def make(family: str = "bert", **kwargs) -> MultiTaskModel:
        path = backbone_path(family)
        torch.manual_seed(1)
        kwargs.setdefault("tasks", tasks)
        return MultiTaskModel.from_backbone(path, **kwargs)

    return make


@pytest.fixture
def arguments(tmp_path):
    """Training arguments for a short quiet run on the CPU."""

    def make(**kwargs) -> MultiTaskTrainingArguments:
        values = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 8,
            "max_steps": 3,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "learning_rate": 1e-3,
        }
        return MultiTaskTrainingArguments(**{**values, **kwargs})

    return make
