"""Stages of a recipe: one after the other, each as a training of its own, and continued where they were stopped."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from stopping import StopAt

from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, SequenceClassification
from hf_multitask.cli import staged
from hf_multitask.cli.recipe import read_recipe
from hf_multitask.cli.stages import Stage, teachers_of

STAGES = [
    {"tasks": ["sentiment"], "max_steps": 2, "freeze": ["backbone"]},
    {"max_steps": 3, "learning_rate": "1e-4", "task_weights": {"ner": 2.0}},
    {"tasks": "ner", "max_steps": 2},
]
TRAINING = {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 1, "disable_tqdm": True}


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def stages(kitchen):
    """A recipe in three stages, with dropout, so that the state of random draws counts."""
    kitchen.recipe["training"] |= TRAINING
    kitchen.recipe |= {"stages": STAGES, "model": {"dropout": 0.1}}
    return kitchen


def test_stages_train_what_they_name_one_after_the_other(stages):
    code, out, err = stages.run(["train"])
    assert code == 0, err
    output = stages.folder / "out"
    one, two, three = (weights_of(output / f"stage-{number}") for number in (1, 2, 3))
    start = MultiTaskModel.from_backbone(
        str(stages.folder / "backbone"), tasks=read_recipe(stages.folder / "recipe.yaml").tasks
    )
    for name, value in start.backbone.state_dict().items():
        assert torch.equal(one[f"backbone.{name}"], value), name
    changed = [{name for name in one if not torch.equal(a[name], b[name])} for a, b in ((one, two), (two, three))]
    heads = [{name.split(".")[1] for name in names if name.startswith("heads.")} for names in changed]
    assert heads == [{"sentiment", "ner"}, {"ner"}]
    assert all(any(name.startswith("backbone.") for name in names) for names in changed)
    assert same(weights_of(output), three)
    results = json.loads((output / "all_results.json").read_text())
    assert {"train_loss", "eval_sentiment_accuracy", "eval_ner_f1", "test_ner_f1", "eval_average"} <= results.keys()
    table = json.loads((output / "stages.json").read_text())
    assert [(line["stage"], line["tasks"], line["steps"]) for line in table] == [
        (1, ["sentiment"], 2),
        (2, ["ner", "sentiment"], 3),
        (3, ["ner"], 2),
    ]
    assert [list(line["measured"]["validation"]) for line in table] == [["sentiment"], *[["ner", "sentiment"]] * 2]
    assert table[2]["measured"]["test"]["ner"]["f1"] == results["test_ner_f1"]
    assert "Stage 2 of 3: ner, sentiment, into" in out and "On validation, after each stage" in out
    assert (output / "README.md").is_file() and "/stage-*/" in (output / ".gitignore").read_text()
    assert stages.run(["evaluate", str(output)], None, "--split", "validation")[0] == 0


@pytest.mark.slow
def test_one_stage_of_all_tasks_is_an_ordinary_training(kitchen):
    training = {**kitchen.recipe["training"], "eval_strategy": "epoch"}
    assert kitchen.run(["train"], kitchen.changed(training={**training, "output_dir": "plain"}))[0] == 0
    staged_recipe = {**kitchen.recipe, "stages": [{"learning_rate": "5e-4"}]}
    staged_recipe["training"] = {**training, "learning_rate": "1e-2"}
    assert kitchen.run(["train"], staged_recipe)[0] == 0
    assert same(weights_of(kitchen.folder / "plain"), weights_of(kitchen.folder / "out"))
    one, other = (json.loads((kitchen.folder / name / "all_results.json").read_text()) for name in ("plain", "out"))
    timed = ("runtime", "per_second")
    assert one.keys() == other.keys()
    assert all(one[key] == other[key] for key in one if not any(word in key for word in timed))


def test_a_stopped_run_continues_in_its_stage_to_the_bit(stages, monkeypatch):
    stages.recipe["training"] |= {"eval_strategy": "epoch"}  # of which trainers complete the arguments
    assert stages.run(["train"], None, "--output_dir", str(stages.folder / "alone"))[0] == 0
    build = staged.StagedRun.trainer

    class Stopped(Exception):
        pass

    class Stop(StopAt):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == self.step + 1:  # what the last step has saved is all there is
                raise Stopped

    def interrupted(self, stage, model):
        trainer = build(self, stage, model)
        if stage.number == 2:
            trainer.add_callback(Stop(1))
        return trainer

    monkeypatch.setattr(staged.StagedRun, "trainer", interrupted)
    with pytest.raises(Stopped):
        stages.run(["train"])
    monkeypatch.setattr(staged.StagedRun, "trainer", build)
    first = stages.folder / "out" / "stage-1" / "model.safetensors"
    before = first.stat().st_mtime_ns
    code, out, err = stages.run(["train"], None, "--resume_from_checkpoint", "true")
    assert code == 0, err
    assert "Stage 1 is finished and is not run again." in out
    assert f"Stage 2: resuming from {stages.folder / 'out' / 'stage-2' / 'checkpoint-1'}." in out
    assert first.stat().st_mtime_ns == before
    for place in ("stage-2", "stage-3", "."):
        assert same(weights_of(stages.folder / "alone" / place), weights_of(stages.folder / "out" / place)), place
    tables = [json.loads((stages.folder / name / "stages.json").read_text()) for name in ("alone", "out")]
    assert tables[0] == tables[1]

    code, out, _ = stages.run(["train"], None, "--resume_from_checkpoint", "true")
    assert code == 0 and "Stage 3 is finished and is not run again." in out
    other = stages.changed(stages=[{**STAGES[0], "max_steps": 1}, *STAGES[1:]])
    code, _, err = stages.run(["train"], other, "--resume_from_checkpoint", "true")
    assert code == 2 and "The max_steps of stage 1, which is finished, differ: 1 now, 2 then. Put it back" in err
    for changed, says in (
        (stages.changed(backbone="alone/stage-1"), "The files of the backbone of stage 1, which is finished, differ"),
        (stages.changed("model", dropout=0.2), "The `dropout` of the model of stage 1, which is finished, differ: 0.2"),
        (stages.changed("model", pooling="mean"), 'differ: "mean" now, null then'),
        (
            stages.changed("tasks", "sentiment", label_smoothing=0.1),
            "The `label_smoothing` of task 'sentiment' of stage 1",
        ),
        (
            stages.changed("datasets", "sentiment", "data_files", train="sentiment/test.jsonl"),
            "The training rows of dataset 'sentiment' of stage 1, which is finished, differ",
        ),
    ):
        code, _, err = stages.run(["train"], changed, "--resume_from_checkpoint", "true")
        assert code == 2 and says in err.splitlines()[-1], err
    measured = stages.changed("tasks", "sentiment", metrics=["f1"])  # which no stage is trained with
    assert stages.run(["train"], measured, "--resume_from_checkpoint", "true")[0] == 0
    with_other_version = stages.folder / "out" / "stage-1" / "stage.json"
    state = json.loads(with_other_version.read_text())
    for part, name in (("arguments", "lr_scheduler_kwargs"), ("facts", "`label_smoothing` of task 'sentiment'")):
        del state[part][name]
    with_other_version.write_text(json.dumps(state))
    rows = stages.folder / "sentiment" / "train.jsonl"
    rows.write_text(
        "".join(json.dumps({**json.loads(line), "note": "new"}) + "\n" for line in rows.read_text().splitlines())
    )
    unlike = stages.changed("training", save_total_limit=3, per_device_eval_batch_size=4)
    code, _, err = stages.run(["train"], unlike, "--resume_from_checkpoint", "true")
    assert code == 0, err
    again = ["--resume_from_checkpoint", str(stages.folder / "out" / "stage-2" / "checkpoint-2")]
    assert stages.run(["train"], None, *again)[0] == 0
    assert same(weights_of(stages.folder / "alone"), weights_of(stages.folder / "out"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"Key 'stages' should be a list of stages, such as .* Found \[\]"),
        ({"tasks": ["ner"]}, r"Key 'stages' should be a list of stages"),
        (["ner"], r"Stage 1 should be a mapping of tasks and training arguments"),
        (
            [{}, {"tasks": ["nre"]}],
            r"Stage 2 names the task 'nre', and the tasks are ner, sentiment. Did you mean 'ner'\?",
        ),
        ([{"tasks": []}], r"Stage 1: `tasks` should be a list of tasks. Found \[\]. Leave it out for all tasks."),
        ([{"tasks": ["ner"]}], r"Task 'sentiment' is in no stage, so its head would not be trained."),
        ([{}, {"output_dir": "x"}], r"Stage 2 sets 'output_dir', which belongs to the whole run."),
        ([{"hub_model_id": "me/x"}], r"Stage 1 sets 'hub_model_id', which belongs to the whole run."),
        ([{}, {"learning_rat": 1}], r"Stage 2 has the unknown argument 'learning_rat'. Did you mean 'learning_rate'\?"),
        ([{}, {"learning_rate": "fast"}], r"Training argument 'learning_rate' cannot be 'fast'"),
        ([{}, {"tasks": ["ner"], "task_weights": {"sentiment": 2.0}}], r"Stage 2: `task_weights` names the task 'sent"),
        ([{}, {"max_steps": 1, "sampling": "sorted"}], r"Stage 2: .*sampling"),
    ],
)
def test_mistakes_in_stages_are_found_before_training(kitchen, value, message):
    code, out, err = kitchen.run(["train"], {**kitchen.recipe, "stages": value})
    assert code == 2 and len(err.splitlines()[-1:]) == 1
    assert re.search(message, err), err
    assert not (kitchen.folder / "out" / "stage-1").exists() and "Plan" not in out


def test_a_dry_run_tells_the_mistake_of_a_later_stage_in_one_sentence(kitchen):
    later = {"tasks": ["sentiment"], "freeze": ["shared_layer"]}
    stages = [{"tasks": ["sentiment", "ner"]}, later]
    code, out, err = kitchen.run(["train"], {**kitchen.recipe, "stages": stages}, "--dry_run")
    assert code == 2 and "Plan" in out
    assert "error: Stage 2: `freeze` names the task 'shared_layer'" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"freeze": ["shared_layer"]}, "`freeze` names the task 'shared_layer'"),
        ({"learning_rates": {"nre": 1e-3}}, "`learning_rates` names the task 'nre'"),
        ({"max_train_samples": {"reviews": 5}}, "`max_train_samples` names the dataset 'reviews'"),
    ],
)
def test_a_name_that_no_stage_has_is_not_left_out(given, says, stages):
    code, _, err = stages.run(["train"], stages.changed("training", **given), "--dry_run")
    assert code == 2 and says in err.splitlines()[-1], err


def test_a_stage_that_is_trained_again_leaves_none_behind_it_finished(stages, monkeypatch):
    stages.recipe["stages"] = STAGES[:2]
    assert stages.run(["train"])[0] == 0
    start = staged.StagedRun._start

    def stopped(self, stage):
        if stage.number == 2:
            raise KeyboardInterrupt
        return start(self, stage)

    with monkeypatch.context() as patch:
        patch.setattr(staged.StagedRun, "_start", stopped)
        stages.run(["train"], None, "--resume_from_checkpoint", str(stages.folder / "out" / "stage-1" / "checkpoint-1"))
    assert not (stages.folder / "out" / "stage-2" / "stage.json").exists()
    code, out, err = stages.run(["train"], None, "--resume_from_checkpoint", "true")
    assert code == 0, err
    assert "Stage 1 is finished" in out and "Stage 2 is finished" not in out

    more = stages.recipe | {"stages": STAGES}
    assert stages.run(["train"], more, "--resume_from_checkpoint", "true")[0] == 0
    table = json.loads((stages.folder / "out" / "stages.json").read_text())
    assert [list(line["measured"]["validation"]) for line in table] == [["sentiment"], *[["ner", "sentiment"]] * 2]


def test_what_one_stage_leaves_out_of_its_files_is_in_those_of_others(stages):
    pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    stages.recipe |= {
        "model": {"lora": {"r": 2}},
        "stages": [{"max_steps": 1}, {"max_steps": 1, "save_adapters_only": True}],
    }
    code, _, err = stages.run(["train"])
    assert code == 0, err
    for number, only in ((1, False), (2, True)):
        config = json.loads((stages.folder / "out" / f"stage-{number}" / "config.json").read_text())
        assert config["adapters"]["only"] is only


def test_tasks_of_the_whole_run_are_those_of_its_stages(stages):
    code, _, err = stages.run(["train"], None, "--dry_run", "--tasks", "ner")
    assert code == 2 and "`tasks` is for a run without stages. Found `tasks = ['ner']`." in err


def test_a_teacher_of_a_finished_stage_counts_by_its_files(tmp_path):
    for name, content in (("one", "a"), ("moved", "a"), ("other", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    stage = Stage(1, ["ner"], {})
    one, moved, other = (
        teachers_of(stage, {"ner": str(tmp_path / name), "mood": name}) for name in ("one", "moved", "other")
    )
    assert list(one) == ["ner"] and one == moved != other
    assert teachers_of(stage, {"ner": "me/ner"}) == {"ner": "me/ner"}


def test_teachers_of_stages_are_trained_apart(stages):
    code, _, err = stages.run(["train"], None, "--teachers", "auto")
    assert code == 2 and "--teachers auto does not go together with 'stages'" in err


def test_how_teachers_teach_does_not_concern_stages_without_them(stages, tokenizer):
    tasks = {"sentiment": SequenceClassification(label_names=["negative", "positive"])}
    MultiTaskModel.from_backbone(str(stages.folder / "backbone"), tasks=tasks).save_pretrained(
        stages.folder / "teacher"
    )
    tokenizer.save_pretrained(stages.folder / "teacher")
    stages.recipe["training"] |= {"distillation": "fixed", "distillation_kwargs": {"temperature": 2}}
    code, out, err = stages.run(["train"], stages.recipe | {"teachers": {"sentiment": "teacher"}}, "--dry_run")
    assert code == 0, err
    assert out.count("Teachers: sentiment") == 2  # the third stage trains the other task
    code, out, err = stages.run(["train"], stages.recipe, "--dry_run")
    assert code == 2 and "`distillation_kwargs` is for runs with teachers" in err
    del stages.recipe["training"]["distillation"], stages.recipe["training"]["distillation_kwargs"]
    given = stages.recipe | {"teachers": {"sentiment": "teacher"}}
    code, out, err = stages.run(["train"], given, "--dry_run", "--distillation", "fixed")
    assert code == 0 and out.count("Teachers: sentiment") == 2, err


def test_one_of_two_tasks_of_the_same_rows_trains_as_it_does_alone(build_model, arguments, data, tokenizer):
    def trained(names, **kwargs):
        task = SequenceClassification(label_names=["negative", "positive"], dataset="rows")
        model = build_model(tasks=dict.fromkeys(names, task), dropout=0.0)
        MultiTaskTrainer(
            model=model,
            args=arguments(**kwargs),
            train_dataset={"rows": data()["sentiment"]},
            processing_class=tokenizer,
        ).train()
        return model.state_dict()

    alone, beside = trained(["one"]), trained(["one", "two"], tasks=["one"])
    assert all(torch.equal(value, beside[name]) for name, value in alone.items())


def test_the_heads_of_other_tasks_stay_as_they_are(build_model, arguments, data, tokenizer):
    model = build_model(dropout=0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = MultiTaskTrainer(
        model=model,
        args=arguments(tasks=["ner"], eval_strategy="steps", eval_steps=3),
        train_dataset={"ner": data()["ner"]},
        eval_dataset={"ner": data(9, 7, "validation")["ner"]},
        processing_class=tokenizer,
    )
    trainer.train()
    changed = {name.split(".")[1] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "ner" in changed and "sentiment" not in changed
    assert {"eval_ner_f1", "eval_average"} <= trainer.state.log_history[-2].keys()
    with pytest.raises(ValueError, match=r"`tasks` names the task 'nre'.* Did you mean 'ner'\?"):
        MultiTaskTrainer(model=model, args=arguments(tasks="nre"), train_dataset=data(), processing_class=tokenizer)
    with pytest.raises(ValueError, match=r"Parameter `tasks` should name a task. Found `tasks = \[\]`"):
        MultiTaskTrainingArguments(output_dir="x", tasks=[])
