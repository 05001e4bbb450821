"""Pushes over the real wire: every commit is a model that loads where the package is not, whatever broke meanwhile."""

import json

import pytest
import torch
from clients import PULL, TRAINER
from processes import run
from transformers import AutoModel, AutoTokenizer

TEXT = "Ada Lovelace loved this place."


@pytest.fixture
def push(hub, backbone_path, tmp_path):
    """Runs a script with a trainer in a process of its own."""

    def call(script):
        from tiny import __file__ as here

        return run(TRAINER + script, here.removesuffix("/tiny.py"), backbone_path(), str(tmp_path / "runs"))

    return call


def commits(hub, name):
    """By ``repository@revision``, the trees of the commits but the first, which creating the repository makes."""
    repository = hub.repositories[name]
    return {f"{name}@{sha}": repository.trees[sha] for sha, _, _ in repository.log[1:]}


def check_every_commit(trees, folder):
    """Every commit gives the same logits without the package as the files of it do here."""
    found = run(PULL, *trees)
    for number, (name, tree) in enumerate(trees.items()):
        for path, content in tree.items():
            file = folder / str(number) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        assert {"README.md", "tokenizer.json", "model.py", "pipeline.py", "extensions.py"} <= tree.keys(), name
        tokenizer = AutoTokenizer.from_pretrained(folder / str(number))
        with torch.no_grad():
            logits = AutoModel.from_pretrained(folder / str(number))(**tokenizer(TEXT, return_tensors="pt")).logits
        assert found[name][0] == {task: value.tolist() for task, value in logits.items()}, name
        assert set(found[name][1]) == set(logits)
    return found


def test_every_commit_of_every_strategy_loads(hub, push, tmp_path):
    resumed = push(
        """
from huggingface_hub import snapshot_download
for strategy in ("end", "every_save", "checkpoint", "all_checkpoints"):
    one = trainer(f"me/{strategy}", hub_strategy=strategy)
    one.train()
    one.push_to_hub()
last = Path(snapshot_download("me/checkpoint", allow_patterns="last-checkpoint/*")) / "last-checkpoint"
again = trainer("me/again", push_to_hub=False, max_steps=6)
again.train(resume_from_checkpoint=str(last))
print(json.dumps([again.state.global_step, told]))
"""
    )
    assert resumed == [6, []]
    saves = ["Training in progress, step 2", "Training in progress, step 4"]
    both = [title for save in saves for title in (save, f"{save}, checkpoint")]
    end = "End of training"  # a commit only where the end has brought something new
    assert hub.titles("me/end") == [end]
    assert [title for title in hub.titles("me/every_save") if title != end] == saves
    for name in ("me/checkpoint", "me/all_checkpoints"):
        assert sorted(title for title in hub.titles(name) if title != end) == both
    folders = {
        path.split("/")[0] for tree in commits(hub, "me/all_checkpoints").values() for path in tree if "/" in path
    }
    assert folders == {"checkpoint-2", "checkpoint-4"}
    trees = {key: tree for name in list(hub.repositories) for key, tree in commits(hub, name).items()}
    found = check_every_commit({key: tree for key, tree in trees.items() if "model.safetensors" in tree}, tmp_path)
    assert len({json.dumps(logits) for logits, _ in found.values()}) == 2  # of step 2 and of step 4
