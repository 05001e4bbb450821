"""What docs/life.md says is run, block by block."""

import re
import shlex

import pytest
from pages import DOCS
from transformers import AutoTokenizer

from hf_multitask.cli import main

PAGE = (DOCS / "life.md").read_text(encoding="utf-8")


@pytest.mark.trainer
def test_the_page_on_the_life_of_tasks_runs(build_model, backbone_path, tasks, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_model(tasks={"ner": tasks["ner"]}).save_pretrained("out")
    AutoTokenizer.from_pretrained(backbone_path()).save_pretrained("out")
    names = {"reviews": data()["sentiment"]}
    for language, block in re.findall(r"```(python|bash)\n(.*?)```", PAGE, flags=re.DOTALL):
        if language == "python":
            exec(block, names)
            continue
        for command in block.splitlines():
            program, *words = shlex.split(command)
            assert program == "hf-multitask"
            assert main(words) == 0
    assert names["model"].config.task_names == ["ner", "sentiment"]
    assert names["joint"].config.task("sentiment")["label_names"] == ["negative", "positive", "neutral"]
