"""Saves a teacher of 300 MB, or measures what answering with it takes at most beside what is imported.

Run as ``python measure_memory.py save|whole|streamed FOLDER 0|1``; the last argument says whether it is a multi-task
model, and not a stock one.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_multitask import MultiTaskModel
from hf_multitask.tasks import build_task
from hf_multitask.training.distillation import streaming

SIZES = {"hidden_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 4096}


def memory(what):
    """A number of bytes of this process: VmHWM, the most that was in memory, or VmRSS, what is."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def save(folder, own):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=600, max_position_embeddings=80, **SIZES))
    if own:
        model = MultiTaskModel.from_task_models({"t": model}, backbone="t")
    model.save_pretrained(folder)
    return {"size": streaming.saved_size(folder)}


def measure(folder, own, streamed):
    task = build_task("t", {"type": "sequence-classification"})
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what is there now
    if streamed:
        model = streaming.load_streamed(folder, task, torch.device("cpu"))
    elif own:
        model = MultiTaskModel.from_pretrained(folder)
    else:
        model = MultiTaskModel.from_task_models({"t": folder}, backbone="t", tasks={"t": {"type": task.type}})
    ids = torch.arange(7, 71).view(4, 16)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits["t"]
    return {"peak": memory("VmHWM") - before, "logits": logits.tolist()}


if __name__ == "__main__":
    way, folder, own = sys.argv[1], sys.argv[2], sys.argv[3] == "1"
    found = save(folder, own) if way == "save" else measure(folder, own, way == "streamed")
    sys.stdout.write(json.dumps(found))
