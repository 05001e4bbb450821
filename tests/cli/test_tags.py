"""Tags that are decoded as sequences, by the command line."""

import json

from tiny import read_rows
from transformers import AutoModel

from hf_multitask.cli import main


def test_a_recipe_sets_scheme_and_decoding(kitchen, capsys):
    recipe = kitchen.changed("tasks", ner={"type": "token-classification", "decoding": "crf", "scheme": "BIO"})
    recipe["datasets"]["ner"]["data_files"].pop("test")
    recipe["training"]["output_dir"] = str(kitchen.folder / "out")
    code, _, errors = kitchen.run(["train"], recipe)
    assert code == 0, errors
    saved = AutoModel.from_pretrained(kitchen.folder / "out")
    assert saved.config.task("ner")["decoding"] == "crf" and saved.heads["ner"].crf.transitions.any()
    kitchen.write("ask.jsonl", [{"text": row["tokens"]} for row in read_rows("ner", "test", 3)])
    assert (
        main(["predict", str(kitchen.folder / "out"), "--input", str(kitchen.folder / "ask.jsonl"), "--tasks", "ner"])
        == 0
    )
    assert len([json.loads(line)["ner"] for line in capsys.readouterr().out.splitlines()]) == 3
    assert main(["export", str(kitchen.folder / "out"), "--task", "ner", "--output", str(kitchen.folder / "one")]) == 2
    assert "which no stock class has" in capsys.readouterr().err


def test_a_mistyped_decoding_is_one_sentence(kitchen):
    recipe = kitchen.changed("tasks", ner={"type": "token-classification", "decoding": "constraint"})
    code, _, errors = kitchen.run(["train"], recipe)
    assert code == 2 and "Did you mean 'constrained'?" in errors and "Traceback" not in errors
