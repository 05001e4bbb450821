"""Peak memory of a language model head that is computed for the labeled tokens only, or for all tokens.

The script runs the forward pass, the loss and the backward pass of the head of a random BERT of two layers on fixed
states of ``--rows`` x ``--length`` tokens, float32, vocabulary 30,522, 8 % of the tokens labeled. Each variant runs in
a separate process; the result is the peak of its resident memory beyond the memory before::

    OMP_NUM_THREADS=1 python benchmarks/language_head.py
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from memory import in_process, resident
from transformers import BertConfig, BertForMaskedLM

from hf_multitask.modeling.language import FillMaskHead
from hf_multitask.modeling.routing import States


def run(whole: bool, rows: int, length: int, share: float) -> float:
    """Memory of one step of the head, in MiB."""
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=2, hidden_size=384, num_attention_heads=12, intermediate_size=1536)
    backbone = BertForMaskedLM(config)
    head = FillMaskHead({"name": "t", "type": "fill-mask"}, config, pooling="native")
    hidden = torch.randn(rows, length, config.hidden_size, requires_grad=True)
    labels = torch.where(torch.rand(rows, length) < share, torch.randint(0, config.vocab_size, (rows, length)), -100)
    for parameter in backbone.parameters():
        parameter.grad = torch.zeros_like(parameter)  # there in both
    before = resident()
    states = States(last_hidden_state=hidden)
    if whole:
        logits = head.read(backbone, states, None)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    else:
        loss = head.loss(head.read(backbone, states, labels), labels).sum() / (labels != -100).sum()
    loss.backward()
    return resident() - before


def main(words: Sequence[str] | None = None) -> None:
    """Run both and print their memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--share", type=float, default=0.08, help="share of the labeled tokens")
    parser.add_argument("--repeats", type=int, default=3, help="number of processes of each, whose median is used")
    given = parser.parse_args(words)
    taken = {}
    for whole in (True, False):
        values = [in_process(run, whole, given.rows, given.length, given.share) for _ in range(given.repeats)]
        taken[whole] = statistics.median(values)
        print(f"{'all tokens' if whole else 'labeled tokens':<16} {taken[whole]:8.0f} MiB")
    print(f"{'share':<16} {taken[False] / taken[True]:8.2f}")


if __name__ == "__main__":
    main()
