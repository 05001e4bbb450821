"""Teachers in recipes, and ``--teachers auto``."""

import copy
import json
import re

import pytest
from tiny import read_rows

from hf_multitask import MultiTaskTrainer
from hf_multitask.cli.teachers import alone, missing_teachers, model_alone
from hf_multitask.tasks import build_task


def results(folder):
    return json.loads((folder / "all_results.json").read_text())


def test_missing_teachers_are_trained_once_and_teach(kitchen):
    recipe = kitchen.changed("training", distillation_kwargs={"temperature": 2}, sampling="uniform")
    recipe["training"]["eval_strategy"] = "no"
    out = kitchen.folder / "out"
    code, told, error = kitchen.run(["train"], recipe, "--teachers", "auto", "--dry_run")
    assert code == 0 and "Plan" in told and not (out / "teachers").exists(), error
    code, told, error = kitchen.run(["train"], recipe, "--teachers", "auto")
    assert code == 0, error
    assert re.findall(r"Teacher of '(\w+)': training into", told) == ["ner", "sentiment"]
    assert "Teachers: ner " in told
    assert "the weight of the labels grows from 0 to 1, temperature 2, rows: own" in told
    for name, other, metric in (("sentiment", "ner", "accuracy"), ("ner", "sentiment", "f1")):
        found = results(out / "teachers" / name)
        assert {f"eval_{name}_{metric}", f"test_{name}_{metric}", "train_loss"} <= found.keys()
        assert not [key for key in found if other in key]
    first = results(out)
    kept = (out / "teachers" / "sentiment" / "model.safetensors").stat().st_mtime_ns

    # What is finished and has not changed is reused, and what was stopped is resumed; the shared run is the same.
    state = out / "teachers" / "ner" / "teacher.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "finished": False}))
    code, told, _ = kitchen.run(["train"], recipe, "--teachers", "auto")
    assert code == 0
    assert re.findall(r"Teacher of '(\w+)': \S+ is reused", told) == ["sentiment"]
    assert re.search(r"Teacher of 'ner': training into \S+, resumed from \S+checkpoint-2\.", told)
    assert results(out)["eval_average"] == first["eval_average"]
    assert (out / "teachers" / "sentiment" / "model.safetensors").stat().st_mtime_ns == kept

    # A file of a teacher that is damaged is written again, from the last checkpoint.
    weights = out / "teachers" / "ner" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    code, told, _ = kitchen.run(["train"], recipe, "--teachers", "auto")
    assert code == 0
    assert re.search(r"Teacher of 'ner': files of \S+ have changed since it was trained, and are written again\.", told)
    assert weights.read_bytes() == whole
    assert results(out)["eval_average"] == first["eval_average"]

    # Other rows make another teacher, and a teacher that the recipe names is taken as it is, relative to the recipe.
    kitchen.write("sentiment/train.jsonl", read_rows("sentiment", "train", 16))
    code, told, _ = kitchen.run(["train"], {**recipe, "teachers": {"ner": "out/teachers/ner"}}, "--teachers", "auto")
    assert code == 0
    assert re.findall(r"Teacher of '(\w+)': training into", told) == ["sentiment"]
    assert "Teacher of 'ner'" not in told
    assert (out / "teachers" / "sentiment" / "model.safetensors").stat().st_mtime_ns > kept

    # A later run leaves nothing of an earlier one among its results.
    compared = {"eval_sentiment_accuracy_single", "test_ner_f1_single", "test_ner_f1_standard_error"}
    assert compared <= first.keys()
    recipe["training"] |= {"distillation_kwargs": None}
    for dataset in recipe["datasets"].values():
        del dataset["data_files"]["test"]
    (out / "stages.json").write_text("[]")
    assert kitchen.run(["train"], recipe)[0] == 0
    found = results(out)
    assert found["eval_average"] and not [name for name in found if name.startswith("test_") or "_single" in name]
    assert not (out / "test_results.json").exists() and not (out / "stages.json").exists()
    assert list(json.loads((out / "eval_report.json").read_text())) == ["validation"]


@pytest.mark.parametrize(
    ("teachers", "says"),
    [
        ({"nre": "out"}, "Key 'teachers' names the task 'nre', and the tasks are ner, sentiment. Did you mean 'ner'?"),
        ({"ner": 3}, "Key 'teachers' should name a folder or a repository of the Hub for task 'ner'. Found"),
        ({"ner": "./nowhere"}, "names the folder .*nowhere', which does not exist"),
        ({"ner": "sentiment"}, "which has no model: there is no config.json"),
        ("auto", "Key 'teachers' should be a mapping.* or leave it out and train the teachers with `--teachers auto`."),
        ({"ner": "backbone"}, "Task 'ner': its teacher '.*backbone' cannot be loaded"),
    ],
)
def test_teachers_that_are_not_there_are_refused(teachers, says, kitchen):
    code, _, error = kitchen.run(["train"], {**kitchen.recipe, "teachers": teachers})
    assert code == 2
    assert re.search(says, error.splitlines()[-1])


def test_mistakes_of_the_shared_run_are_found_before_a_teacher_trains(kitchen):
    recipe = kitchen.changed("training", task_weights={"nre": 2.0})
    code, _, error = kitchen.run(["train"], recipe, "--teachers", "auto")
    assert code == 2
    assert "`task_weights` names the task 'nre'" in error
    assert not (kitchen.folder / "out" / "teachers").exists()


def test_a_stream_that_teachers_would_answer_is_found_before_one_trains(kitchen):
    reviews = copy.deepcopy(kitchen.recipe["datasets"]["sentiment"])
    reviews["data_files"].pop("test")
    recipe = kitchen.changed("datasets", more={**reviews, "streaming": True})
    recipe["tasks"]["mood"] = {
        "type": "sequence-classification",
        "dataset": "more",
        "label_names": ["negative", "positive"],
    }
    recipe["training"] |= {"max_steps": 2, "sampling": "uniform", "distillation_kwargs": {"rows": "all"}}
    code, _, error = kitchen.run(["train"], recipe, "--teachers", "auto")
    assert code == 2
    assert "dataset 'more' is a stream. Use an ordinary dataset, or leave the teacher out, or set rows='own'" in error
    assert not (kitchen.folder / "out" / "teachers").exists()


def test_a_task_that_cannot_be_trained_alone_is_one_sentence(kitchen):
    pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    recipe = {**kitchen.changed("training", save_adapters_only=True), "model": {"task_lora": {"ner": {"r": 2}}}}
    code, _, error = kitchen.run(["train"], recipe, "--teachers", "auto")
    assert code == 2
    assert "error: A teacher of task 'sentiment' cannot be trained with this recipe: " in error
    assert "nothing to save without the backbone. Add some. Or name a model of the task under `teachers`." in error


@pytest.mark.unit
def test_a_task_alone_has_the_arguments_that_concern_it():
    task = build_task("ner", {"type": "token-classification", "dataset": "wiki"})
    values = {
        "learning_rate": 1e-4,
        "learning_rates": {"ner": 1e-3, "backbone": 1e-5, "mood": 1e-2, "shared_layers": 1e-6},
        "weight_decays": {"shared_layers": 0.1},
        "max_train_samples": {"wiki": 5, "reviews": 7},
        "freeze": ["backbone", "mood", "shared_layers"],
        "balancing": "uncertainty",
        "hub_model_id": "me/x",
        "push_to_hub": True,
        "metric_for_best_model": "mood_accuracy",
        "greater_is_better": True,
    }
    assert alone(values, task, ["mood"]) == {
        "learning_rate": 1e-4,
        "learning_rates": {"ner": 1e-3, "backbone": 1e-5},
        "weight_decays": None,
        "max_train_samples": {"wiki": 5},
        "freeze": ["backbone"],
    }
    assert alone({"metric_for_best_model": "ner_f1"}, task, ["mood"]) == {"metric_for_best_model": "ner_f1"}
    for frozen in ("shared_layers", ["mood"]):  # as where nothing is frozen
        assert alone({"freeze": frozen}, task, ["mood"])["freeze"] is None


@pytest.mark.unit
def test_a_task_alone_has_the_adapter_that_concerns_it():
    values = {"pooling": "mean", "branches": "kind", "branch_layers": 1, "task_lora": {"ner": {"r": 4}}}
    assert model_alone(values, "ner", ["mood"]) == {"pooling": "mean", "task_lora": {"ner": {"r": 4}}}
    assert model_alone(values, "mood", ["ner"]) == {"pooling": "mean", "task_lora": None}
    assert model_alone({"task_lora": {"r": 4}}, "ner", ["mood"]) == {"task_lora": {"r": 4}}


def test_a_teacher_does_not_depend_on_what_has_run_before_it(kitchen):
    recipe = {**kitchen.changed("training", eval_strategy="no"), "model": {"lora": {"r": 2}}}
    code, told, error = kitchen.run(["train"], recipe, "--teachers", "auto", "--tasks", "sentiment")
    assert code == 0, error
    assert re.findall(r"Teacher of '(\w+)': training into", told) == ["sentiment"]
    code, told, error = kitchen.run(["train"], recipe, "--teachers", "auto")  # which trains another before it
    assert code == 0, error
    assert re.findall(r"Teacher of '(\w+)': training into", told) == ["ner"]
    assert re.findall(r"Teacher of '(\w+)': \S+ is reused", told) == ["sentiment"]


@pytest.mark.unit
def test_tasks_that_cannot_have_a_teacher_train_without():
    kinds = {"ner": "token-classification", "qa": "question-answering", "mood": "sequence-classification"}
    tasks = {name: build_task(name, {"type": kind}) for name, kind in kinds.items()}
    wanted, told = missing_teachers(tasks, {"mood": "folder"})
    assert wanted == ["ner"]
    assert told == [
        "Task 'qa': a task of type question-answering cannot have a teacher: its outputs are positions among the tokens "
        "of the teacher's own tokenizer."
    ]
    assert missing_teachers(tasks, {}, frozen="ner")[1][0] == "Task 'ner' is frozen and gets no teacher."
    assert missing_teachers(tasks, {}, streams={"mood"})[0] == ["ner"]


def test_an_interrupted_teacher_says_how_to_go_on(kitchen, monkeypatch):
    class Interrupted(MultiTaskTrainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 1:
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    recipe = kitchen.changed("training", max_steps=2, save_strategy="no", eval_strategy="no")
    with monkeypatch.context() as patch:
        patch.setattr("hf_multitask.cli.teachers.MultiTaskTrainer", Interrupted)
        code, told, _ = kitchen.run(["train"], recipe, "--teachers", "auto")
    assert code == 130
    assert re.search(r"The teacher of '\w+' stopped early. Run the same command again", told)
