"""Exported tasks over the real wire: pushed in one commit, and read back by stock classes alone."""

import json

from processes import BLOCK, run

EXPORT = """
import json, sys
from hf_multitask import MultiTaskModel

model = MultiTaskModel.from_pretrained(sys.argv[1])
model.export_task("ner", sys.argv[2] + "/ner", push_to_hub=True, repo_id="me/ner", private=True, commit_message="Tags")
model.export_task("ner", sys.argv[2] + "/ner", push_to_hub=True, repo_id="me/ner", revision="next")
model.task_model("sentiment").push_to_hub("me/sentiment")
try:
    model.export_task("ner", sys.argv[2] + "/ner", push_to_hub=True, repo_id="you/ner")
except OSError as problem:
    print(json.dumps(str(problem)))
"""
STOCK = (
    BLOCK
    + """
from transformers import AutoModelForSequenceClassification, pipeline

ner = pipeline("token-classification", "me/ner")
labels = AutoModelForSequenceClassification.from_pretrained("me/sentiment").config.id2label
print(json.dumps([type(ner.model).__name__, len(ner("Ada Lovelace loved this place.")), sorted(labels.values())]))
"""
)


def test_exported_tasks_are_pushed_and_pulled(hub, build_model, tokenizer, tmp_path):
    build_model().save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    hub.create("me/ner", private=True).commit("main", "a card", {"README.md": b"# Mine\n"})
    refused = run(EXPORT, str(tmp_path / "saved"), str(tmp_path / "exported"))
    assert refused.startswith("The repository 'you/ner' cannot be pushed to: the token has no right to that")
    ner = hub.repositories["me/ner"]
    assert hub.titles("me/ner") == ["a card", "Tags"] and ner.refs.keys() == {"main", "next"}
    tree = ner.trees[ner.refs["main"]]
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= tree.keys() and tree["README.md"] == b"# Mine\n"
    assert not [name for name in tree if name.endswith(".py")]
    assert b"hf_multitask" not in tree["config.json"] + (tmp_path / "exported" / "ner" / "README.md").read_bytes()
    name, words, labels = run(STOCK)
    assert (name, labels) == ("BertForTokenClassification", ["negative", "positive"])
    assert words and json.loads(tree["config.json"])["id2label"]["0"]
