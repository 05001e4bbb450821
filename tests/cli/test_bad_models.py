"""Saved models that are not what they should be: one sentence each, exit code 2, and nothing is run."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_multitask.cli import main


@pytest.fixture
def saved(build_model, tokenizer, tmp_path):
    folder = tmp_path / "model"
    build_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def said(saved, capsys):
    """What the command line says of the folder."""

    def call():
        capsys.readouterr()
        code = main(["predict", str(saved), "A fine place."])
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), err
        (line,) = [line for line in err.splitlines() if line and "it/s]" not in line]  # bars
        assert line.startswith("hf-multitask: error: ") and "Traceback" not in line
        return line

    return call


class Bomb:
    """A pickle that leaves a file where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def edit(saved, change):
    config = json.loads((saved / "config.json").read_text())
    change(config)
    (saved / "config.json").write_text(json.dumps(config))


def test_weights_that_are_not_whole(saved, said):
    path = saved / "model.safetensors"
    content = path.read_bytes()
    for part in (content[:-10], content[:100], b""):
        path.write_bytes(part)
        line = said()
        assert (
            f"The weights of '{saved}' are not complete, or not in safetensors (" in line and "Save them again" in line
        )


def test_shards_that_did_not_all_arrive(saved, said, build_model):
    build_model().save_pretrained(saved, max_shard_size="50KB")
    shard = min(saved.glob("model-00001-of-*.safetensors"))
    shard.unlink()
    line = said()
    assert f"The weights of '{saved}' are not complete" in line and shard.name in line
    (saved / "model.safetensors.index.json").write_text("{")
    assert f"A JSON file of '{saved}', its tokenizer or index of weights, is not complete" in said()


def test_weights_of_another_model(saved, said):
    save_file({"encoder.weight": torch.zeros(2)}, saved / "model.safetensors", metadata={"format": "pt"})
    line = said()
    assert f"Checkpoint '{saved}' has no weights for head 'ner' (tasks in its config: sentiment, ner; " in line
    assert "Use a config and weights that were saved together." in line


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_in_its_place_is_refused_unread(name, saved, said, tmp_path):
    (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(pickle.dumps(Bomb(str(tmp_path / "ran"))))
    line = said()
    assert ("not loaded, because reading one can run code" if name.endswith("bin") else "not in safetensors") in line
    assert not (tmp_path / "ran").exists()


def test_a_pickle_is_not_asked_for_either(saved):
    from hf_multitask import MultiTaskModel

    with pytest.raises(ValueError, match="`use_safetensors` should not be False"):
        MultiTaskModel.from_pretrained(saved, use_safetensors=False)


def test_a_model_of_another_kind(saved, said, backbone_path):
    (saved / "config.json").write_text(Path(backbone_path(), "config.json").read_text())
    assert f"'{saved}' is not a multi-task model: its config.json has the model_type 'bert'. Put heads on it" in said()


TASK = {"name": "pos", "type": "token-classification", "label_names": ["A", "B"]}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c["tasks"].append(TASK), ["has no weights for head 'pos'", "saved together"]),
        (lambda c: c["tasks"].pop(), ["has foreign weights for head 'ner'"]),
        (
            lambda c: c["tasks"][0]["label_names"].append("neutral"),
            ["has weights of another size for head 'sentiment'", "is [2]", "makes it [3]", "Check the label_names"],
        ),
        (lambda c: c["tasks"][0].update(label_names="abc"), ["Task 'sentiment': `label_names` should be a list"]),
        (lambda c: c["tasks"][0].update(max_length=-3), ["Task 'sentiment': `max_length` should be a whole number"]),
        (lambda c: c["tasks"][0].update(problem_type="regresion"), ["`problem_type` should be", "Did you mean 'reg"]),
        (lambda c: c.update(backbone_config="bert"), ["`backbone_config` should be a configuration"]),
        (lambda c: c["backbone_config"].update(hidden_size="24"), ["backbone_config of 'bert'", "'hidden_size'"]),
        (lambda c: c["tasks"][0].update(type="sequence-clasification"), ["unknown type", "Did you mean"]),
        (lambda c: c["tasks"][0].pop("type"), ["Task 'sentiment' has no 'type'"]),
        (lambda c: c["tasks"][0].update(name="../../etc"), ["Task name '../../etc' is not usable", "Rename the task"]),
        (lambda c: c["tasks"][0].update(name="ner"), ["Task name 'ner' is used 2 times"]),
        (lambda c: c.update(tasks={"ner": TASK}), ["`tasks` should be a list of one mapping per task"]),
        (lambda c: c.update(tasks=["ner"]), ["`tasks` should be a list of one mapping per task"]),
        (lambda c: c.update(pooling="maen"), ["`pooling` should be one of", "Did you mean 'mean'?"]),
        (lambda c: c["backbone_config"].update(model_type="brt"), ["the model_type 'brt'", "Did you mean 'bert'?"]),
        (lambda c: c["backbone_config"].update(hidden_size=16), ["has weights of another size for"]),
        (lambda c: c.update(format_version=99), ["format version 99", "reads up to 2. Upgrade hf_multitask."]),
        (
            lambda c: c.update(format_version=99, tasks={"layout": "new"}, backbone_config=None),
            ["format version 99", "Upgrade hf_multitask."],
        ),
        (lambda c: c.update(format_version="new"), ["`format_version` should be a whole number from 1"]),
    ],
)
def test_a_configuration_edited_by_hand(change, parts, saved, said):
    edit(saved, change)
    line = said()
    for part in parts:
        assert part in line


def test_a_configuration_that_is_no_json(saved, said):
    (saved / "config.json").write_text('{"model_type": "multitask", ')
    assert "config.json' is not a valid JSON file" in said()


def test_a_storage_that_is_full_at_the_end_of_training(kitchen, full):
    with full(100_000):  # takes all but the weights
        code, out, err = kitchen.run(["train"])
    line = err.splitlines()[-1]
    assert code == 2 and "Traceback" not in err + out
    assert line.startswith("hf-multitask: error: Nothing could be saved in '") and "(file too large)" in line
    assert not list((kitchen.folder / "out").glob("*.safetensors"))
    saves = kitchen.changed("training", save_strategy="epoch")
    assert kitchen.run(["train"], saves)[0] == 0
    before = (kitchen.folder / "out" / "model.safetensors").read_bytes()
    with full(100_000):  # goes on from its last checkpoint, which is its end
        code, out, err = kitchen.run(["train"], saves, "--resume_from_checkpoint", "true")
    assert code == 2 and "The files of the save before are still complete." in err.splitlines()[-1]
    assert "--resume_from_checkpoint true" in out
    assert (kitchen.folder / "out" / "model.safetensors").read_bytes() == before
