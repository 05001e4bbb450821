"""Models with adapters, and batches whose rows several tasks read, for the tests of adapters."""

import torch
from building import build
from reading import TASKS
from transformers import AutoTokenizer

ENCODER = ("sequence-classification", "token-classification", "question-answering", "multiple-choice")
KINDS = {
    "bert": (*ENCODER, "sentence-similarity", "fill-mask"),
    "roberta": ENCODER,
    "distilbert": ENCODER,
    "modernbert": (*ENCODER, "fill-mask"),
    "gpt2": (*ENCODER[:3], "text-generation"),
    "llama": (*ENCODER[:3], "text-generation"),
    "bart": ("sequence-classification", "question-answering", "translation", "summarization"),
    "t5": ("sequence-classification", "token-classification", "translation"),
}
BOTH = {"lora": {"r": 2, "init_lora_weights": False}, "task_lora": {"r": 3, "init_lora_weights": False}}


def build_adapted(path, kinds, **kwargs):
    """A model of some types on a tiny backbone, the same weights at every call, whatever its adapters."""
    model = build(path, {kind: TASKS[kind]() for kind in kinds}, **kwargs)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model.set_pad_token_id(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    return model


def batch(rows=6, length=9):
    ids = torch.randint(6, 500, (rows, length), generator=torch.Generator().manual_seed(3))
    ids[:, -1] = 3  # an end, which BART looks for
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    ids[0, length // 2 - 1] = 3
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def reading(kinds):
    """Rows of each type, some read by several and some by none, and labels of those that need them."""
    places = {
        "sequence-classification": [0, 3],
        "token-classification": [3, 1, 2],
        "question-answering": [[2, 1], [4, -1]],
        "multiple-choice": [[4, 0, -1], [0, 3, 1]],
        "sentence-similarity": [[1, 2], [3, 4]],
        "fill-mask": [1, 3],
        "text-generation": [4, 2],
        "translation": [2, 0],
        "summarization": [1],
    }
    rows = {kind: torch.tensor(places[kind]) for kind in kinds}
    targets = torch.full((6, 9), -100)
    targets[:, 2:4] = batch()["input_ids"][:, 2:4]
    labels = {kind: targets[rows[kind]] for kind in kinds if kind in ("fill-mask", "text-generation")}
    labels |= {
        kind: batch()["input_ids"][rows[kind]][:, :4] for kind in kinds if kind in ("translation", "summarization")
    }
    return rows, labels
