"""Tiny random backbones, tokenizers trained on the demo's texts, and pieces of the demo's real data."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

DATA = Path(__file__).parent.parent / "examples" / "sentiment_ner" / "data"
NER_LABELS = json.loads((DATA / "ner" / "info.json").read_text())["label_names"]
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
