"""Pushes from the command line, which break off and are made good."""

import json
import re
import shlex

import yaml
from launch import start
from pages import DOCS


def test_a_push_that_breaks_at_the_end_is_said_and_made_good_by_the_commands_of_the_page(hub, call, kitchen, tmp_path):
    page = (DOCS / "hub.md").read_text(encoding="utf-8")
    train, predict, upload = (
        line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(kitchen.recipe))
    hub.breaks.append(("POST", "me/out/commit/", "drop"))
    said = call(f"{train} --hub_strategy end --report_to none", code=2)
    assert said.startswith("hf-multitask: error: The push to 'me/out' failed: the connection failed (")
    assert said.endswith(f"Push them later with: hf upload me/out {tmp_path}/out . --exclude 'checkpoint-*'")
    assert {"all_results.json", "README.md", "model.safetensors"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert hub.titles("me/out") == []
    uploaded = start(shlex.split(upload), cwd=tmp_path)
    assert uploaded.returncode == 0, uploaded.stderr
    assert set(json.loads(call(predict))) == {"sentiment", "ner"}
