"""Small tokenizers built as the real families' are: their classes, normalisers, pieces and special tokens.

They are the same in every process. Training a BPE model is deterministic; training a WordPiece or a Unigram model is not.
"""

import json
import math

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

BYTES = [f"<0x{number:02X}>" for number in range(256)]


def word_pieces(special, texts, size, normalizer, pre_tokenizer):
    """A WordPiece tokenizer.

    Training numbers the characters within words in the order of a hash map, and breaks ties by these numbers, unless the
    trainer is given them as special tokens.
    """
    trained, tokenizer = (Tokenizer(models.WordPiece(unk_token="[UNK]")) for _ in range(2))
    for one in (trained, tokenizer):
        one.normalizer, one.pre_tokenizer = normalizer, pre_tokenizer
    words = [word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))]
    within = sorted({f"##{character}" for word in words for character in word[1:]})
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*special, *within], show_progress=False)
    trained.train_from_iterator(texts, trainer)
    tokenizer.model = models.WordPiece(trained.get_vocab(), unk_token="[UNK]")
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def unigram(special, texts, size):
    """Pieces of a Unigram model that begin with the mark of a space, and may hold punctuation at their end.

    The pieces are those of a BPE model, with the logarithms of how often they occur: expectation maximization would sum
    floats in any order.
    """
    vocab, _ = merges(special, texts, size)
    marked = ["▁" + text.replace(" ", "▁") for text in texts]
    counts = {piece: sum(text.count(piece) for text in marked) for piece in vocab if piece not in special}
    total = sum(counts.values())
    scores = {piece: math.log(max(count, 1) / total) for piece, count in counts.items()}
    return [*((name, 0.0) for name in special), *sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))]


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
