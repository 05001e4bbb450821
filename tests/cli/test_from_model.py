"""Recipes that continue a saved model: its heads stay or train on, new ones come, and unnamed ones are frozen."""

import shutil

import pytest
import torch
import yaml
from launch import start
from tiny import NER_LABELS, read_rows
from transformers import AutoTokenizer

from hf_multitask import MultiTaskModel, SequenceClassification, TokenClassification
from hf_multitask.cli import main
from hf_multitask.modeling.branches import branch_of

WARNING = "does not name ner of the saved model"


@pytest.fixture
def saved(kitchen, backbone_path):
    """A recipe that continues a saved model of the tasks sentiment and ner, and the model."""
    torch.manual_seed(4)
    tasks = {
        "sentiment": SequenceClassification(label_names=["negative", "positive"], max_length=40),
        "ner": TokenClassification(label_names=NER_LABELS),
    }
    model = MultiTaskModel.from_backbone(backbone_path(), tasks=tasks)
    tokenizer = AutoTokenizer.from_pretrained(backbone_path())
    tokenizer.add_tokens(["lovelace"])  # so that it is not the backbone's
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(kitchen.folder / "saved")
    tokenizer.save_pretrained(kitchen.folder / "saved")
    recipe = kitchen.changed(backbone=None, from_model="saved", model=None)
    del recipe["tasks"]["ner"], recipe["datasets"]["ner"]
    recipe["training"] |= {"output_dir": "out", "max_steps": 3, "eval_strategy": "no", "save_strategy": "no"}
    return recipe, model


def with_more(kitchen, recipe):
    """The recipe with a new label and a new task."""
    for split, count in (("train", 20), ("validation", 8), ("test", 8)):
        rows = read_rows("sentiment", split, count)
        more = [{**row, "label": "neutral"} for row in rows[:6]]
        kitchen.write(f"moods/{split}.jsonl", rows[6:] + more)
        kitchen.write(f"topics/{split}.jsonl", [{**row, "label": f"topic{n % 3}"} for n, row in enumerate(rows)])
    files = {name: {split: f"{name}/{split}.jsonl" for split in ("train", "test")} for name in ("moods", "topics")}
    recipe["datasets"] = {name: {"path": "json", "data_files": own} for name, own in files.items()}
    recipe["tasks"] = {
        "topic": {"type": "sequence-classification", "dataset": "topics"},
        "sentiment": {"type": "sequence-classification", "dataset": "moods", "add_labels": ["neutral"]},
    }
    return recipe


def differing(one, other):
    """The parts of two models whose weights differ, among those that both have."""
    mine, theirs = one.state_dict(), other.state_dict()
    common = [name for name in mine.keys() & theirs.keys() if mine[name].shape == theirs[name].shape]
    found = {name for name in common if not torch.equal(mine[name], theirs[name])}
    return {".".join(name.split(".")[:2]) if name.startswith("heads") else "backbone" for name in found}


def test_heads_stay_grow_and_come_and_unnamed_ones_are_frozen(kitchen, saved, caplog):
    recipe, before = saved
    recipe = with_more(kitchen, recipe)
    code, out, err = kitchen.run(["train"], recipe)
    assert code == 0 and WARNING in caplog.text, err
    after = MultiTaskModel.from_pretrained(kitchen.folder / "out")
    assert after.config.task_names == ["sentiment", "ner", "topic"]
    assert after.config.task("sentiment")["label_names"] == ["negative", "positive", "neutral"]
    assert after.config.task("sentiment")["max_length"] == 40  # which the recipe does not set
    assert after.config.task("sentiment")["dataset"] == "moods"
    assert after.config.task("topic")["label_names"] == ["topic0", "topic1", "topic2"]
    assert after.config.task("ner") == before.config.task("ner")
    assert differing(after, before) == {"backbone"}  # of the same shape
    assert len(AutoTokenizer.from_pretrained(kitchen.folder / "out")) == len(
        AutoTokenizer.from_pretrained(kitchen.folder / "saved")
    )
    assert "test_sentiment_accuracy" in (kitchen.folder / "out" / "all_results.json").read_text()
    code, out, err = kitchen.run(["evaluate", str(kitchen.folder / "out")], recipe, "--split", "test")
    assert code == 0 and "topic" in out and "ner" not in out, err
    assert main(["predict", str(kitchen.folder / "out"), "A text."]) == 0


def test_a_frozen_backbone_keeps_what_unnamed_tasks_say(kitchen, saved, caplog):
    recipe, before = saved
    code, _, err = kitchen.run(["train"], recipe, "--freeze", "backbone")
    assert code == 0 and WARNING not in caplog.text, err
    after = MultiTaskModel.from_pretrained(kitchen.folder / "out")
    assert differing(after, before) == {"backbone", "heads.sentiment"}  # the pooler trains with the head that reads it
    ids = torch.tensor([[2, 100, 200, 3]])
    with torch.no_grad():
        found, expected = (one.eval()(ids, tasks=["ner"]).logits["ner"] for one in (after, before))
    assert torch.equal(found, expected)


@pytest.fixture
def branched(kitchen, saved, backbone_path):
    """Likewise for a model of three tasks with a branch each; the recipe names the first and a task that joins it."""
    recipe, _ = saved
    torch.manual_seed(4)
    tasks = {
        "sentiment": SequenceClassification(label_names=["negative", "positive"]),
        "ner": TokenClassification(label_names=NER_LABELS),
        "length": SequenceClassification(label_names=["short", "long"]),
    }
    branches = {"reviews": ["sentiment"], "words": ["ner"], "lengths": ["length"]}
    model = MultiTaskModel.from_backbone(
        backbone_path(), tasks=tasks, pooling="mean", branches=branches, branch_layers=1
    )
    model.save_pretrained(kitchen.folder / "saved")
    AutoTokenizer.from_pretrained(backbone_path()).save_pretrained(kitchen.folder / "saved")
    recipe["tasks"]["mood"] = {"type": "sequence-classification", "dataset": "sentiment"}
    return recipe, model


def moved(after, before):
    """The branches whose weights differ, and ``below`` where those of the shared layers do."""
    mine, theirs = after.backbone.state_dict(), before.backbone.state_dict()
    return {branch_of(name) or "below" for name in mine if not torch.equal(mine[name], theirs[name])}


@pytest.mark.parametrize(
    ("freeze", "trained", "told"),
    [
        (None, {"below", "reviews"}, "does not name ner, length of the saved model"),
        ("shared_layers", {"reviews"}, None),
        ("backbone", set(), None),
    ],
)
def test_branches_of_unnamed_tasks_stay_and_a_frozen_backbone_has_all_of_them(
    freeze, trained, told, kitchen, branched, caplog
):
    recipe, before = branched
    code, _, err = kitchen.run(["train"], recipe, *(["--freeze", freeze] if freeze else []))
    assert code == 0, err
    after = MultiTaskModel.from_pretrained(kitchen.folder / "out")
    assert after.config.branches["reviews"] == ["sentiment", "mood"]
    assert moved(after, before) == trained
    assert told in caplog.text if told else "does not name" not in caplog.text


def test_only_tasks_whose_answers_change_are_named(kitchen, branched, caplog):
    recipe, before = branched
    recipe["datasets"]["moods"] = recipe["datasets"].pop("sentiment")
    recipe["tasks"] = {"mood": {"type": "sequence-classification", "dataset": "moods"}}
    code, _, err = kitchen.run(["train"], recipe, "--freeze", "shared_layers")
    assert code == 0, err
    assert moved(MultiTaskModel.from_pretrained(kitchen.folder / "out"), before) == {"reviews"}
    assert "does not name sentiment of the saved model" in caplog.text


@pytest.mark.parametrize("training", [{"tasks": ["mood"]}, {}])
def test_some_of_the_named_tasks_train(training, kitchen, branched):
    recipe, before = branched
    recipe["training"] |= {**training, "freeze": ["shared_layers"]}
    if not training:
        recipe["stages"] = [{"tasks": ["mood"]}, {"tasks": ["sentiment"]}]
    code, _, err = kitchen.run(["train"], recipe)
    assert code == 0, err
    after = MultiTaskModel.from_pretrained(kitchen.folder / "out")
    assert moved(after, before) == {"reviews"}
    assert differing(after, before) - {"backbone"} == (set() if training else {"heads.sentiment"})


def test_a_resumed_run_ends_with_the_same_weights(kitchen, saved):
    recipe, _ = saved
    recipe = with_more(kitchen, recipe)
    recipe["training"] |= {"save_strategy": "steps", "save_steps": 2}
    assert kitchen.run(["train"], recipe)[0] == 0
    whole = MultiTaskModel.from_pretrained(kitchen.folder / "out")
    (kitchen.folder / "out" / "checkpoint-2").rename(kitchen.folder / "kept")
    code, _, err = kitchen.run(["train"], recipe, "--resume_from_checkpoint", str(kitchen.folder / "kept"))
    assert code == 0, err
    assert differing(MultiTaskModel.from_pretrained(kitchen.folder / "out"), whole) == set()


def test_adapters_are_kept(kitchen, saved, backbone_path, caplog):
    recipe, _ = saved
    torch.manual_seed(4)
    tasks = {
        "sentiment": SequenceClassification(label_names=["negative", "positive"]),
        "ner": TokenClassification(label_names=NER_LABELS),
    }
    before = MultiTaskModel.from_backbone(backbone_path(), tasks=tasks, lora={"r": 2}, task_lora={"r": 2})
    before.save_pretrained(kitchen.folder / "saved")
    AutoTokenizer.from_pretrained(backbone_path()).save_pretrained(kitchen.folder / "saved")
    code, _, err = kitchen.run(["train"], recipe)
    assert code == 0 and WARNING in caplog.text, err  # they share an adapter, which trains
    after = MultiTaskModel.from_pretrained(kitchen.folder / "out")
    assert after.config.adapters == before.config.adapters
    mine, theirs = after.state_dict(), before.state_dict()
    changed = {name for name in mine if not torch.equal(mine[name], theirs[name])}
    assert any("_shared" in name for name in changed) and any("sentiment" in name for name in changed)
    assert all("_shared" in name or "sentiment" in name or "pooler" in name for name in changed), changed


def test_diagnose_continues_a_saved_model(kitchen, saved):
    recipe, _ = saved
    recipe = with_more(kitchen, recipe)
    code, out, err = kitchen.run(["diagnose"], recipe, "--parts", "cosines", "--measured_steps", "2")
    assert code == 0 and "Cosine" in out and "topic" in out, err


def changed(recipe, *keys, **values):
    inner = recipe
    for key in keys:
        inner = inner[key]
    inner.update(values)
    return {key: value for key, value in recipe.items() if value is not None}


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        ((), {"backbone": "backbone"}, "has both 'backbone' and 'from_model'. Keep the one"),
        ((), {"from_model": "nowhere/x/y"}, "Key 'from_model' names the folder"),
        ((), {"from_model": "sentiment"}, "Key 'from_model' names the folder"),
        ((), {"from_model": "backbone"}, "is not a multi-task model"),
        ((), {"from_model": 3}, "Key 'from_model' should be a name or a path. Found 3"),
        ((), {"model": {"dropout": 0.1}}, "Key 'model' has 'dropout', which is for a new model"),
        (("tasks", "sentiment"), {"type": "multiple-choice"}, "is of type sequence-classification. Found"),
        (("tasks", "sentiment"), {"label_names": ["positive", "negative"]}, "name new labels in `add_labels`"),
        (("tasks", "sentiment"), {"add_labels": ["positive"]}, "Task 'sentiment' has the label 'positive' already"),
        (("tasks", "sentiment"), {"add_labels": "neutral"}, "`add_labels` should be a list of labels"),
        (
            ("tasks",),
            {"mood": {"type": "sequence-classification", "dataset": "sentiment", "add_labels": ["x"]}},
            "Task 'mood' is not in the saved model",
        ),
        (("training",), {"output_dir": "saved"}, "name the same folder"),
        (
            ("datasets",),
            {"ner": {"path": "json", "data_files": {"train": "ner/train.jsonl"}}},
            "Name the task to train it as well, or give the dataset another name",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_training(kitchen, saved, keys, values, message):
    recipe, _ = saved
    code, _, err = kitchen.run(["train"], changed(recipe, *keys, **values))
    assert code == 2 and message in err.splitlines()[-1], err


def test_labels_that_a_saved_head_lacks_are_refused_with_the_fix(kitchen, saved):
    recipe, _ = saved
    recipe = with_more(kitchen, recipe)
    del recipe["tasks"]["sentiment"]["add_labels"]
    code, _, err = kitchen.run(["train"], recipe)
    assert code == 2 and "labels that its head does not have: neutral. Name them in `add_labels`" in err, err
    code, _, err = kitchen.run(["train"], recipe, "--teachers", "auto")
    assert code == 2 and "--teachers auto trains single-task models from the backbone" in err
    recipe = kitchen.changed("tasks", "sentiment", add_labels=["neutral"])
    code, _, err = kitchen.run(["train"], recipe)
    assert code == 2 and "the recipe has no `from_model`. Set `label_names` instead" in err


@pytest.mark.slow
def test_a_model_of_the_hub_is_continued(hub, call, kitchen, saved):
    recipe, _ = saved
    uploaded = start(["hf", "upload", "me/saved", "saved", "."], cwd=kitchen.folder)
    assert uploaded.returncode == 0, uploaded.stderr
    shutil.rmtree(kitchen.folder / "saved")
    recipe["from_model"] = "me/saved"
    (kitchen.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    call("hf-multitask train recipe.yaml")
    assert MultiTaskModel.from_pretrained(kitchen.folder / "out").config.task_names == ["sentiment", "ner"]
