"""The update of a step depends on its rows, not on how they are dealt to micro-batches and ranks."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tiny import NER_LABELS
from transformers import AutoTokenizer

from hf_multitask import MultiTaskTrainer

# Rows of a device, accumulation.
LAYOUTS = [(8, 4), (4, 8), (2, 16)]


def relative_difference(ones, others) -> float:
    difference = torch.cat([(ones[name].double() - others[name].double()).flatten() for name in ones]).norm()
    return float(difference / torch.cat([value.double().flatten() for value in ones.values()]).norm())


@pytest.fixture
def train(build_model, data, arguments, backbone_path):
    def run(batch, accumulation, dtype, **kwargs):
        model = build_model(dropout=0.0).to(dtype)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        trainer = MultiTaskTrainer(
            model,
            arguments(
                per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=6, **kwargs
            ),
            # 67 rows: two full steps of 32 and one of 3 in an epoch; NER has a few rows a step, and none in some parts.
            train_dataset=data(56, 11),
            processing_class=AutoTokenizer.from_pretrained(backbone_path()),
        )
        trainer.train()
        assert relative_difference(start, model.state_dict()) > 1e-3  # six steps move the weights, differences apart
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        return {name: value.clone() for name, value in model.state_dict().items()}, logs

    return run


@pytest.mark.parametrize("sampling", ["proportional", "uniform"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_accumulation_does_not_change_the_update(dtype, bound, sampling, train, record_property):
    whole, logs = train(32, 1, dtype, sampling=sampling, task_weights={"ner": 2.5})
    for batch, accumulation in LAYOUTS:
        parts, part_logs = train(batch, accumulation, dtype, sampling=sampling, task_weights={"ner": 2.5})
        record_property(f"32x1 against {batch}x{accumulation}, relative norm", relative_difference(whole, parts))
        assert relative_difference(whole, parts) < bound
        for one, other in zip(logs, part_logs, strict=True):
            assert one == pytest.approx(other, rel=1e-5)
        assert any("ner_loss" not in entry for entry in logs) == (sampling == "proportional")


def test_logged_loss_is_the_weighted_sum_of_the_task_losses(train):
    _, logs = train(8, 4, torch.float64, task_weights={"ner": 2.5})
    for entry in logs:
        assert entry["loss"] == pytest.approx(entry["sentiment_loss"] + 2.5 * entry.get("ner_loss", 0), rel=1e-6)
        assert entry["sentiment_share"] + entry["ner_share"] == pytest.approx(1)


SCRIPT = """
import json, sys
from datasets import Dataset
import torch
from transformers import AutoTokenizer
from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, SequenceClassification, TokenClassification

backbone, output, rows, labels = sys.argv[1], sys.argv[2], json.loads(open(sys.argv[3]).read()), json.loads(sys.argv[4])
torch.manual_seed(1)
tasks = {"sentiment": SequenceClassification(label_names=["negative", "positive"]), "ner": TokenClassification(label_names=labels)}
model = MultiTaskModel.from_backbone(backbone, tasks=tasks, dropout=0.0).double()
args = MultiTaskTrainingArguments(
    output, per_device_train_batch_size=16, max_steps=6, report_to="none", use_cpu=True, disable_tqdm=True,
    save_strategy="no", logging_steps=1, learning_rate=1e-3, eval_strategy="steps", eval_steps=6,
)
assert args.world_size == 2
data = {name: Dataset.from_list(own) for name, own in rows.items()}
trainer = MultiTaskTrainer(model, args, train_dataset=data, eval_dataset=data, processing_class=AutoTokenizer.from_pretrained(backbone))
trainer.train()
trainer.save_model()
trainer.save_state()
"""


def test_two_ranks_make_the_update_of_one(
    train, build_model, data, arguments, backbone_path, tmp_path, record_property
):
    whole, logs = train(32, 1, torch.float64)
    rows = {name: dataset.to_list() for name, dataset in data(56, 11).items()}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "run.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517"]
    command += [str(tmp_path / "run.py"), backbone_path(), str(tmp_path / "out"), str(tmp_path / "rows.json")]
    result = subprocess.run(
        [*command, json.dumps(NER_LABELS)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    difference = relative_difference(whole, load_file(tmp_path / "out" / "model.safetensors"))
    record_property("32x1 against two ranks of 16, relative norm", difference)
    assert difference < 1e-9
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    for one, other in zip(logs, [entry for entry in history if "loss" in entry], strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    # Evaluation counts every row once: 11 and 56 rows do not divide by two ranks of 8.
    model = build_model(dropout=0.0).double()
    model.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    alone = MultiTaskTrainer(
        model, arguments(), eval_dataset=data(56, 11), processing_class=AutoTokenizer.from_pretrained(backbone_path())
    ).evaluate()
    together = next(entry for entry in history if "eval_average" in entry)
    for key in ("eval_average", "eval_ner_loss", "eval_sentiment_loss", "eval_ner_f1", "eval_sentiment_accuracy"):
        assert alone[key] == pytest.approx(together[key], rel=1e-9), key
