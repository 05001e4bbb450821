"""Writes `backbone/` beside this file: a small random BART, and a tokenizer of the words of this example.

`make_sentences.py` runs before: the tokenizer is trained on the sentences that it writes, and on the transcripts.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BartConfig, BartModel, PreTrainedTokenizerFast, set_seed

HERE = Path(__file__).parent
FILES = (HERE / "data" / "train.jsonl", HERE.parent / "spoken_digits" / "data" / "train.jsonl")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces of words by byte-pair encoding, of both languages."""
    rows = [json.loads(line) for file in FILES for line in file.read_text(encoding="utf-8").splitlines()]
    texts = [row[name] for row in rows for name in ("source", "target", "text") if name in row]
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    pieces.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4000, special_tokens=list(SPECIAL)))
    pieces.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
    )


def main() -> None:
    """Write configuration, weights and tokenizer."""
    tokenizer = make_tokenizer()
    set_seed(0)
    sides = ("encoder", "decoder")
    sizes = {f"{side}_{name}": size for side in sides for name, size in _SIZES.items()}
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=128,
        max_position_embeddings=128,
        dropout=0.1,
        scale_embedding=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        **sizes,
    )
    BartModel(config).save_pretrained(HERE / "backbone")
    tokenizer.save_pretrained(HERE / "backbone")


_SIZES = {"layers": 2, "attention_heads": 4, "ffn_dim": 256}

if __name__ == "__main__":
    main()
