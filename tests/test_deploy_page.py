"""What docs/deploy.md says is run, block by block, as far as a test has what it needs."""

import json
import re
import sys

import pandas as pd
import pytest
from launch import accelerate, start
from pages import DOCS, files_of
from reading import assert_same

from hf_multitask import MultiTaskPipeline

FILES = files_of("deploy.md")
TEXTS = ["A fine place.", "No.", "Ada Lovelace loved this place.", "Never again!", "So, so."]


@pytest.fixture
def kitchen(build_model, tokenizer, tmp_path, monkeypatch):
    """A folder with a model and texts, to be in, and what the pipeline answers."""
    model = build_model().eval()
    model.save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    pd.DataFrame({"text": TEXTS}).to_parquet(tmp_path / "texts.parquet")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return MultiTaskPipeline(model=model, tokenizer=tokenizer)(TEXTS)


def names_of(name):
    names = {"__name__": name.removesuffix(".py")}
    exec(compile(FILES[name], f"docs/deploy.md: {name}", "exec"), names)
    return names


def test_every_block_is_a_file_that_a_test_runs():
    page = (DOCS / "deploy.md").read_text(encoding="utf-8")
    assert page.count("```python") == len(FILES)
    assert set(FILES) == {"try_handler.py", "ray_answers.py", "spark_answers.py", "spark_job.py"}


def test_the_handler_answers(kitchen, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "handler", raising=False)
    names = names_of("try_handler.py")
    monkeypatch.delitem(sys.modules, "handler")
    assert_same(names["answer"], {"sentiment": kitchen[2]["sentiment"]})


def test_the_function_for_spark_answers_batches(kitchen):
    answers = names_of("spark_answers.py")["answers"]
    found = list(answers(iter([pd.Series(TEXTS[:2]), pd.Series(TEXTS[2:]), pd.Series([], dtype=object)])))
    assert [len(series) for series in found] == [2, 3, 0]
    assert_same([json.loads(answer) for series in found for answer in series], kitchen)


def read_answers(folder):
    rows = pd.concat(pd.read_parquet(path) for path in sorted((folder / "answers").glob("*.parquet")))
    by_text = dict(zip(rows["text"], map(json.loads, rows["answers"]), strict=True))
    return [by_text[text] for text in TEXTS]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(("package", "name"), [("ray", "ray_answers.py"), ("pyspark", "spark_job.py")])
def test_jobs_write_the_answers(package, name, kitchen, tmp_path):
    pytest.importorskip(package, reason=f"{package} is not installed")
    result = start([sys.executable, name], cwd=tmp_path, timeout=500, RAY_USAGE_STATS_ENABLED="0")
    assert result.returncode == 0, result.stderr[-3000:]
    assert_same(read_answers(tmp_path), kitchen)


@pytest.mark.slow
@pytest.mark.process
def test_the_command_for_large_files_answers_all(kitchen, tmp_path):
    page = (DOCS / "deploy.md").read_text(encoding="utf-8")
    (words,) = re.findall(r"accelerate launch --num_processes 4 (.*)\n", page)
    result = start(accelerate(2, *words.split()), cwd=tmp_path, ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr[-3000:]
    rows = pd.read_parquet(tmp_path / "answers.parquet").to_dict("records")
    assert [row["sentiment"]["label"] for row in rows] == [answer["sentiment"]["label"] for answer in kitchen]
