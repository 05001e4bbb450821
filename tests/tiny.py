"""Tiny random backbones, tokenizers trained on the demo's texts, and pieces of the demo's real data."""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizing import REAL, word_pieces
from transformers import (
    AlbertConfig,
    AutoModel,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    LongformerConfig,
    MarianConfig,
    MBartConfig,
    ModernBertConfig,
    MPNetConfig,
    MT5Config,
    PreTrainedTokenizerFast,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    XLMConfig,
    XLMRobertaConfig,
)

DATA = Path(__file__).parent.parent / "examples" / "sentiment_ner" / "data"
NER_LABELS = json.loads((DATA / "ner" / "info.json").read_text())["label_names"]
VOCAB = 600
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|endoftext|>", "[MASK]"]
ROBERTA_SPECIAL = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "<|endoftext|>", "[MASK]"]
COMMON = {"vocab_size": VOCAB, "max_position_embeddings": 80, "pad_token_id": 0}
ROBERTA = {"vocab_size": VOCAB, "max_position_embeddings": 80, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
MBERT = {
    "directionality": "bidi",
    "pooler_fc_size": 32,
    "pooler_num_attention_heads": 4,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 8,
    "pooler_type": "first_token_transform",
}
DECODER = {"vocab_size": VOCAB, "max_position_embeddings": 80, "bos_token_id": 4, "eos_token_id": 4, **SIZES}
GEMMA = {
    **DECODER,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "num_key_value_heads": 1,
    "head_dim": 8,
}

BART = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
T5 = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "eos_token_id": 1}

CONFIGS = {
    "bert": lambda: BertConfig(**COMMON, **SIZES),
    "mbert": lambda: BertConfig(**COMMON, **SIZES, **MBERT),
    "roberta": lambda: RobertaConfig(**ROBERTA, **SIZES, type_vocab_size=1),
    "xlm": lambda: XLMConfig(**COMMON, emb_dim=32, n_layers=2, n_heads=4, bos_token_id=2, eos_token_id=3),
    "xlm-roberta": lambda: XLMRobertaConfig(**ROBERTA, **SIZES, type_vocab_size=1),
    "distilbert": lambda: DistilBertConfig(**COMMON, dim=32, n_layers=2, n_heads=4, hidden_dim=37),
    "electra": lambda: ElectraConfig(**COMMON, **SIZES, embedding_size=16),
    "albert": lambda: AlbertConfig(**COMMON, **SIZES, embedding_size=16, bos_token_id=2, eos_token_id=3),
    "deberta-v2": lambda: DebertaV2Config(**COMMON, **SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "modernbert": lambda: ModernBertConfig(
        **COMMON, **SIZES, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, reference_compile=False
    ),
    "mpnet": lambda: MPNetConfig(**ROBERTA, **SIZES),
    "longformer": lambda: LongformerConfig(**ROBERTA, **SIZES, attention_window=8, type_vocab_size=1, sep_token_id=2),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_positions=80, n_embd=32, n_layer=2, n_head=4, bos_token_id=4, eos_token_id=4
    ),
    "llama": lambda: LlamaConfig(**{**DECODER, "bos_token_id": 1, "eos_token_id": 2}, num_key_value_heads=2),
    "qwen3": lambda: Qwen3Config(**DECODER, num_key_value_heads=2, head_dim=8),
    "gemma": lambda: GemmaConfig(**GEMMA),
    "gemma2": lambda: Gemma2Config(**GEMMA, query_pre_attn_scalar=8, sliding_window=8),
    "gemma3": lambda: Gemma3TextConfig(**GEMMA, query_pre_attn_scalar=8, sliding_window=8),
}
# Encoder-decoders, apart from the others: most tests of the encoders' ways of reading do not concern them.
WRITERS = {
    "bart": lambda: BartConfig(**BART, decoder_start_token_id=3, forced_eos_token_id=3),
    "mbart": lambda: MBartConfig(**BART, decoder_start_token_id=2),
    "marian": lambda: MarianConfig(**BART, decoder_start_token_id=0, decoder_vocab_size=VOCAB),
    "t5": lambda: T5Config(**T5, decoder_start_token_id=0, pad_token_id=0),
    "mt5": lambda: MT5Config(**T5, decoder_start_token_id=0, pad_token_id=0),
}
ALL = {**CONFIGS, **WRITERS}
CAUSAL = ("gpt2", "llama", "qwen3", "gemma", "gemma2", "gemma3")
SEQUENCE_ONLY = ("gemma3",)  # no token classifier in Transformers
BYTE_LEVEL = ("roberta", "xlm", "modernbert", "longformer", "gpt2", "qwen3")


def read_rows(task: str, split: str, count: int | None = None) -> list[dict]:
    lines = (DATA / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A family's tokenizer, the same at every call and in every process."""
    return deepcopy(_trained(family))


@cache
def _trained(family: str) -> PreTrainedTokenizerFast:
    texts = [row["text"] for row in read_rows("sentiment", "train", 400)]
    texts += [" ".join(row["tokens"]) for row in read_rows("ner", "train", 200)]
    if family in REAL:
        return REAL[family](texts, VOCAB)
    config = ALL[family]()
    special = ROBERTA_SPECIAL if config.pad_token_id == 1 else SPECIAL
    if family in BYTE_LEVEL:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCAB, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        tokenizer.train_from_iterator(texts, trainer)
    else:
        normalizer = normalizers.BertNormalizer(lowercase=family != "mbert")
        tokenizer = word_pieces(special, texts, VOCAB, normalizer, pre_tokenizers.BertPreTokenizer())
        tokenizer.decoder = decoders.WordPiece()
    if family in CAUSAL:
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            eos_token="<|endoftext|>",
            pad_token=None if config.pad_token_id is None else "[PAD]",
            model_max_length=80,
            model_input_names=["input_ids", "attention_mask"],
        )
    ends = [(token, special.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    plain = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=78,
        model_input_names=plain if family in BYTE_LEVEL else [*plain, "token_type_ids"],
    )


def save_backbone(family: str, folder: str | Path) -> None:
    """A tiny random model, the same weights at every call, and its tokenizer."""
    torch.manual_seed(0)
    AutoModel.from_config(ALL[family]()).save_pretrained(folder)
    make_tokenizer(family).save_pretrained(folder)
