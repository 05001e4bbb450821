"""Teachers whose weights do not fit into memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mixtures import make_tasks
from tiny import ALL, SEQUENCE_ONLY

from hf_multitask import MultiTaskModel
from hf_multitask.tasks import build_task
from hf_multitask.training.distillation import streaming, teacher

CPU = torch.device("cpu")
MEASURE = Path(__file__).with_name("measure_memory.py")


@pytest.fixture
def little_memory(monkeypatch):
    """Makes the available memory of teachers that are loaded as small as their weights are."""

    def make(path, less=1):
        size = streaming.saved_size(path) - less
        for module in (teacher, streaming):
            monkeypatch.setattr(module, "available_memory", lambda device: size)

    return make


def softs(trainer):
    return [trainer.train_dataset[row].get("soft") for row in range(32)]


def test_a_teacher_that_does_not_fit_answers_the_same_from_its_files(
    build, teachers, build_model, tokenizer, little_memory, tmp_path, caplog
):
    saved = tmp_path / "own"
    build_model(dropout=0.0).save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    both = (teachers, {"sentiment": str(saved)})
    answered = [build(given) for given in both]
    assert "layers is read" not in caplog.text
    for given, whole in zip(both, answered, strict=True):
        caplog.clear()
        little_memory(given["sentiment"])
        read = build(given)
        said = [line for line in caplog.messages if "meta device" in line or "layers is read" in line]
        assert len(said) == len(given)
        assert f"Task 'sentiment': its teacher '{given['sentiment']}' has " in said[0]
        assert (softs(read), read.teachers.digests) == (softs(whole), whole.teachers.digests)
    given = MultiTaskModel.from_pretrained(saved, device_map={"backbone": "disk", "heads": "cpu"})
    assert softs(build({"sentiment": given})) == softs(whole)


def test_a_teacher_that_cannot_be_read_by_layer_is_refused(build, build_model, teachers, little_memory, tmp_path):
    path = teachers["sentiment"]
    little_memory(path, less=streaming.saved_size(path))
    with pytest.raises(
        ValueError, match=r"its largest layer and what is not in a layer take [\d.]+ MB, and 0\.0 MB of"
    ):
        build({"sentiment": path})
    model = build_model(lora={"r": 2}, tasks=make_tasks(["sentiment"]))
    model.save_pretrained(tmp_path / "adapters", adapters_only=True)
    little_memory(str(tmp_path / "adapters"))
    with pytest.raises(ValueError, match=r"saved without its backbone '.*', and cannot be read layer by layer"):
        build({"sentiment": str(tmp_path / "adapters")})


@pytest.mark.unit
def test_memory_is_that_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "_CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\nactive_file 50\n")
    (tmp_path / "memory.max").write_text("max\n")
    machine = streaming.available_memory(CPU)
    (tmp_path / "memory.max").write_text("1000\n")
    assert streaming.available_memory(CPU) == 180  # 90 % of what is left and of what is given up
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert streaming.available_memory(CPU) == 90
    assert machine > 2**20


@pytest.mark.slow
@pytest.mark.parametrize("family", ALL)
def test_every_family_answers_the_same_from_its_files(family, teacher_of, tmp_path):
    ids = torch.arange(7, 31).view(2, 12)
    ids[:, -1] = 3 if family in ("bart", "mbart", "marian") else 1
    for kind, task in (("sequence", "sequence-classification"), ("token", "token-classification")):
        if kind == "token" and family in (*SEQUENCE_ONLY, "bart", "mbart", "marian"):
            continue
        if family == "marian":
            continue
        stock = teacher_of(kind, ["a", "b", "c"], family)
        whole = MultiTaskModel.from_task_models({"t": stock}, backbone="t", tasks={"t": {"type": task}})
        whole.save_pretrained(tmp_path / kind)
        for path in (stock, str(tmp_path / kind)):
            read = streaming.load_streamed(path, build_task("t", {"type": task}), CPU)
            assert streaming.streamed(read)
            found = []
            for model in (whole, read):
                model.set_pad_token_id(0)
                with torch.no_grad():
                    found.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits["t"])
            assert torch.equal(*found)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("own", [False, True])
def test_a_teacher_read_by_layer_takes_less_memory(own, tmp_path):
    """Of 300 MB of weights in six layers, one layer and the states of a pass."""
    found = {}
    for way in ("save", "whole", "streamed"):
        result = subprocess.run(
            [sys.executable, str(MEASURE), way, str(tmp_path), str(int(own))],
            capture_output=True,
            text=True,
            check=True,
        )
        found[way] = json.loads(result.stdout.splitlines()[-1])
    size = found["save"]["size"]
    assert size > 290e6
    assert found["streamed"]["logits"] == found["whole"]["logits"]
    assert found["whole"]["peak"] > size
    assert found["streamed"]["peak"] < size / 2
