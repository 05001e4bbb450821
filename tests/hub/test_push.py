"""Pushes over the real wire: every commit is a model that loads where the package is not, whatever broke meanwhile."""

import json

import pytest
import torch
from clients import PULL, TRAINER
from parameters import few
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
        assert {
            "README.md",
            "tokenizer.json",
            "model.py",
            "pipeline.py",
            "extensions.py",
            "handler.py",
            "requirements.txt",
        } <= tree.keys(), name
        tokenizer = AutoTokenizer.from_pretrained(folder / str(number))
        with torch.no_grad():
            logits = AutoModel.from_pretrained(folder / str(number))(**tokenizer(TEXT, return_tensors="pt")).logits
        assert found[name][0] == {task: value.tolist() for task, value in logits.items()}, name
        assert set(found[name][1]) == set(logits)
    return found


STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")


@pytest.mark.parametrize("strategies", few([(STRATEGIES,), (STRATEGIES[1:3],)], ["two"], ["four", "two"]))
def test_every_commit_of_every_strategy_loads(strategies, hub, push, tmp_path):
    resumed = push(
        f"strategies = {strategies}"
        """
from huggingface_hub import snapshot_download
for strategy in strategies:
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
    titles = {name: [title for title in hub.titles(f"me/{name}") if title != end] for name in strategies}
    assert titles["every_save"] == saves and sorted(titles["checkpoint"]) == both
    if "end" in strategies:
        assert hub.titles("me/end") == [end] and sorted(titles["all_checkpoints"]) == both
        trees = commits(hub, "me/all_checkpoints").values()
        assert {path.split("/")[0] for tree in trees for path in tree if "/" in path} == {
            "checkpoint-2",
            "checkpoint-4",
        }
    trees = {key: tree for name in list(hub.repositories) for key, tree in commits(hub, name).items()}
    # A commit that adds a checkpoint in a folder leaves the model as it was: one of two that are equal is loaded.
    models = {
        tuple(sorted((path, content) for path, content in tree.items() if "/" not in path)): key
        for key, tree in trees.items()
        if "model.safetensors" in tree
    }
    found = check_every_commit({key: trees[key] for key in models.values()}, tmp_path)
    assert len({json.dumps(logits) for logits, _ in found.values()}) == 2  # of step 2 and of step 4


def test_pushes_that_break_lose_nothing_and_are_made_good(hub, push, tmp_path):
    hub.breaks += [
        ("PUT", "/lfs/", "drop"),  # in the middle of a file, which the client sends again
        ("POST", "me/during/commit/", "drop"),
        ("POST", "me/end/commit/", "drop"),
        ("POST", "me/full/preupload/", 403),
    ]
    end, first, told = push(
        """
def train(name, **kwargs):
    one = trainer(name, **kwargs)
    one.train()
    return one

def failure(call):
    try:
        call()
    except OSError as problem:
        return str(problem)

train("me/during", hub_strategy="every_save").push_to_hub()
one = train("me/end", hub_strategy="end", hub_revision="next")
end = [failure(one.push_to_hub)]
one.push_to_hub(revision="next")
train("me/full", hub_strategy="end").save_model()
first = [failure(lambda: trainer(*name, **kwargs)) for name, kwargs in (
    (["me/new"], {"hub_token": "hf_wrong"}), (["me/new"], {"hub_token": "hf_reader"}), (["you/new"], {})
)]
print(json.dumps([end, first, told]))
"""
    )
    assert not hub.breaks
    during, full = told
    assert during.startswith("The push of step 2 to 'me/during' failed: the connection failed (")
    assert "Training continues, and a later push uploads all files: the next one, or trainer.push_to_hub()." in during
    for said, name in ((end[0], "me/end"), (full, "me/full")):
        folder = tmp_path / "runs" / name
        assert said.startswith(f"The push to '{name}' failed: ")
        assert said.endswith(
            f"All files are whole in {folder}. Push them later with: "
            f"hf upload {name} {folder} . --exclude 'checkpoint-*'"
        )
        assert AutoModel.from_pretrained(folder).config.task_names == ["sentiment", "ner"]
    assert "the token has no right to that (The storage of this account is full)" in full
    assert first[0].startswith("The repository 'me/new' cannot be pushed to: the token is not valid.")
    assert all("the token has no right to that (You don't have the rights to" in said for said in first[1:])
    assert hub.repositories["me/end"].refs.keys() == {"main", "next"} and "me/new" not in hub.repositories
    stored = [path for method, path in hub.requests if method == "PUT"]
    assert len(stored) == len(set(stored)) + 1  # only the file that broke off was sent twice
    trees = {key: tree for name in ("me/during", "me/end") for key, tree in commits(hub, name).items()}
    check_every_commit(trees, tmp_path / "trees")


@pytest.mark.slow
def test_types_of_the_users_own_are_pushed_too(hub, count, build_model, tokenizer, tmp_path):
    build_model(tasks={"entities": count.Count()}).save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    script = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        "from hf_multitask import MultiTaskModel\n"
        "model = MultiTaskModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "model.push_to_hub('me/counts')\n"
        "AutoTokenizer.from_pretrained(sys.argv[1]).push_to_hub('me/counts')\n"
        "print(len(MultiTaskModel.from_pretrained('me/counts', trust_remote_code=True).heads))\n"
    )
    assert run(script, str(tmp_path / "saved")) == 1
    tree = hub.repositories["me/counts"].trees[hub.repositories["me/counts"].refs["main"]]
    assert {"extensions.py", "extension_count_head.py"} <= tree.keys()
    (answer,) = (answer for _, answer in run(PULL, "me/counts@main").values())
    assert set(answer["entities"]) == {"count", "expected"}
