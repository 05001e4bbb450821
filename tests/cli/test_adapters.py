"""Adapters from a recipe: trained, evaluated, asked, resumed."""

import json
import sys

import pytest
from safetensors.torch import load_file

from hf_multitask.cli import main

MODEL = {"lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}, "task_lora": {"ner": {"r": 2}}}


@pytest.mark.parametrize("only", [False, True])
def test_a_recipe_with_adapters_trains_and_answers(only, kitchen, capsys):
    recipe = kitchen.changed(model={"dropout": 0.0, **MODEL})
    words = ["--save_adapters_only", str(only), "--save_strategy", "epoch"]
    assert kitchen.run(["train"], recipe, *words)[0] == 0
    folder = kitchen.folder / "out"
    config = json.loads((folder / "config.json").read_text())
    assert config["adapters"]["only"] == only and list(config["adapters"]["tasks"]) == ["ner"]
    assert config["adapters"]["shared"] == {
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "r": 4,
        "target_modules": ["query", "value"],
        "use_rslora": False,
    }
    assert only != any(name.endswith("word_embeddings.weight") for name in load_file(folder / "model.safetensors"))
    measured = json.loads((folder / "test_results.json").read_text())
    code, out, _ = kitchen.run(["evaluate", str(folder)], recipe, "--split", "test")
    assert code == 0 and f"{measured['test_average']:.4f}" in out
    capsys.readouterr()
    assert main(["predict", str(folder), "Ada Lovelace loved this place."]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"sentiment", "ner"}
    code, out, _ = kitchen.run(["train"], recipe, *words, "--num_train_epochs", "2", "--resume_from_checkpoint", "true")
    assert code == 0 and "Resuming from" in out


def test_mistakes_in_the_settings_are_told_in_one_sentence(kitchen, monkeypatch):
    def told(model):
        code, _, err = kitchen.run(["train"], kitchen.changed(model=model))
        assert code == 2
        return err.strip().splitlines()[-1]

    assert "`lora` has the unknown argument 'lora_alhpa'" in told({"lora": {"lora_alhpa": 3}})
    assert "Did you mean 'task_lora'?" in told({"task_loar": {"r": 3}})
    monkeypatch.setitem(sys.modules, "peft", None)
    assert told(MODEL).endswith("Run: pip install 'hf_multitask[peft]'")
