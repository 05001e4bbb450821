"""Ray Train runs a script of a user's own as docs/distributed.md says, with the weights of one process."""

import sys

import pytest
import torch
from launch import start
from pages import files_of
from safetensors.torch import load_file
from tiny import DATA

SCRIPT = """
import os, sys
import torch
from datasets import load_dataset
from transformers import AutoTokenizer
from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, SequenceClassification, TokenClassification

torch.manual_seed(1)
tasks = {{"sentiment": SequenceClassification(label_names=["negative", "positive"]), "ner": TokenClassification()}}
rows = {{name: load_dataset("json", data_files=f"{data}/{{name}}/train.jsonl", split="train").select(range(31)) for name in tasks}}
ranks = int(os.environ.get("WORLD_SIZE", 1))
args = MultiTaskTrainingArguments(
    sys.argv[2], per_device_train_batch_size=8 // ranks, max_steps=4, report_to="none", save_strategy="no", learning_rate=1e-3
)
assert args.world_size == ranks
trainer = MultiTaskTrainer(
    MultiTaskModel.from_backbone("{backbone}", tasks=tasks, dropout=0.0), args, train_dataset=rows,
    processing_class=AutoTokenizer.from_pretrained("{backbone}"),
)
trainer.train()
trainer.save_model()
print("ranks:", ranks)
"""


@pytest.mark.slow
@pytest.mark.process
def test_ray_runs_a_script_as_it_is(backbone_path, tmp_path):
    pytest.importorskip("ray.train", reason="ray is not installed")
    (tmp_path / "train.py").write_text(SCRIPT.format(data=DATA, backbone=backbone_path()))
    (tmp_path / "ray_train.py").write_text(files_of("distributed.md")["ray_train.py"])
    environment = {"CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"}
    together = start([sys.executable, "ray_train.py"], cwd=tmp_path, timeout=500, **environment)
    assert together.returncode == 0, together.stderr[-3000:]
    assert "ranks: 2" in together.stdout + together.stderr
    alone = start([sys.executable, "train.py", "--output_dir", "alone"], cwd=tmp_path, **environment)
    assert alone.returncode == 0, alone.stderr[-3000:]
    one, two = (load_file(tmp_path / folder / "model.safetensors") for folder in ("alone", "out"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
