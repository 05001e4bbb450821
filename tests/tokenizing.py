"""Small tokenizers built as the real families' are: their classes, normalisers, pieces and special tokens."""

import json

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

BYTES = [f"<0x{number:02X}>" for number in range(256)]


def unigram(special, texts, size):
    """Pieces of a Unigram model that begin with the mark of a space, and may hold punctuation at their end."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    unknown = "[UNK]" if "[UNK]" in special else "<unk>"
    trainer = trainers.UnigramTrainer(vocab_size=size - len(special), unk_token=unknown, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    pieces = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return [*((name, 0.0) for name in special), *(piece for piece in pieces if piece[0] not in (*special, unknown))]


def merges(special, texts, size):
    """Vocabulary and merges of a BPE model on marked spaces, whose unknown characters become bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair if isinstance(pair, list) else pair.split(" ")) for pair in model["merges"]]


def xlm_roberta(texts, size):
    vocab = unigram(["<s>", "<pad>", "</s>", "<unk>"], texts, size - 1)
    return transformers.XLMRobertaTokenizer(vocab=[*vocab, ("<mask>", 0.0)], model_max_length=78)


def deberta_v2(texts, size):
    vocab = unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], texts, size - 1)
    return transformers.DebertaV2Tokenizer(vocab=[*vocab, ("[MASK]", 0.0)], model_max_length=78)


def t5(texts, size):
    vocab = unigram(["<pad>", "</s>", "<unk>"], texts, size - 4)
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=4, model_max_length=78)


def llama(texts, size):
    vocab, pairs = merges(["<unk>", "<s>", "</s>", *BYTES], texts, size)
    return transformers.LlamaTokenizer(vocab=vocab, merges=pairs, model_max_length=80)


def gemma(texts, size):
    vocab, pairs = merges(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *BYTES], texts, size)
    return transformers.GemmaTokenizer(vocab=vocab, merges=pairs, model_max_length=80)


REAL = {
    "xlm-roberta": xlm_roberta,
    "deberta-v2": deberta_v2,
    "t5": t5,
    "mt5": t5,
    "llama": llama,
    "gemma": gemma,
    "gemma2": gemma,
    "gemma3": gemma,
}
