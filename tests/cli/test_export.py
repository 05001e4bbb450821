"""export, as a user runs it."""

import logging

import pytest
import torch
from fork_server import python
from reading import TASKS, TEXT
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from hf_multitask import MultiTaskModel
from hf_multitask.cli import main

# The command line where no file takes more than some bytes.
FULL = """
import resource, signal, sys

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from hf_multitask.cli import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def saved(backbone_path, tmp_path):
    """A folder with a model of three tasks, whose last one no stock class can hold."""
    torch.manual_seed(2)
    kinds = {"ner": "token-classification", "similar": "sentence-similarity", "answers": "question-answering"}
    family = "t5"
    tasks = {name: TASKS[kind]() for name, kind in kinds.items()}
    MultiTaskModel.from_backbone(backbone_path(family), tasks=tasks).save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(backbone_path(family)).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def run(saved, capsys):
    def call(*words):
        capsys.readouterr()
        code = main(["export", str(saved), *map(str, words)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err.splitlines()[-1] if err else ""

    return call


def test_a_task_becomes_a_folder_that_a_stock_pipeline_loads(run, tmp_path):
    code, out, _ = run("--task", "ner", "--output", tmp_path / "ner")
    assert (code, out) == (0, f"ner: {tmp_path / 'ner'}\n")
    answer = pipeline("token-classification", str(tmp_path / "ner"))(TEXT)
    assert all({"entity", "start", "end"} <= word.keys() for word in answer)
    assert AutoModelForTokenClassification.from_pretrained(tmp_path / "ner").config.id2label[1] == "B-PER"


def test_all_exports_what_a_stock_class_can_hold_and_names_the_rest(run, tmp_path):
    code, out, last = run("--all", "--output", tmp_path / "all")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == ["ner", "similar"]
    assert last.startswith("Not exported: Task 'answers' has a head that is not the family's own")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["ner", "similar"]


def test_a_refused_task_that_was_asked_for_is_an_error_after_the_others(run, tmp_path):
    code, out, last = run("--task", "answers", "ner", "--output", tmp_path / "some")
    assert (code, out) == (2, f"ner: {tmp_path / 'some' / 'ner'}\n")
    assert last.startswith("hf-multitask: error: Task 'answers' has a head that is not the family's own")
    assert (tmp_path / "some" / "ner" / "model.safetensors").exists()


def test_mistakes_are_told_in_a_sentence(run, saved, tmp_path):
    for words, part in [
        (["--task", "nre"], "has no task 'nre'; it has ner, similar, answers. Did you mean 'ner'?"),
        ([], "No task is selected for export. Set --task NAME, or --all."),
        (["--all", "--task", "ner"], "Use either --task NAME or --all."),
        (["--all", "--force"], "export does not accept the argument '--force'."),
    ]:
        code, _, last = run(*words, "--output", tmp_path / "out")
        assert code == 2
        assert part in last
        assert not (tmp_path / "out").exists()
    code, _, last = run("--task", "ner", "--output", saved)
    assert code == 2
    assert "holds a multi-task model, which an export would overwrite" in last


@pytest.mark.slow  # of the command: tests/test_serving_page.py
@pytest.mark.parametrize(
    ("words", "outputs"),
    [([], ["ner_logits", "similar_logits", "answers_logits"]), (["--task", "ner"], ["ner_logits"])],
    ids=["all", "some"],
)
def test_onnx_is_one_graph_of_all_tasks_or_of_some(words, outputs, run, tmp_path, caplog):
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    notes = logging.getLogger("torch.onnx")
    notes.addHandler(caplog.handler)
    code, out, _ = run("--onnx", *words, "--output", tmp_path / "graph")
    notes.removeHandler(caplog.handler)
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]  # of packages that are not needed here
    assert (code, out) == (0, f"{tmp_path / 'graph' / 'model.onnx'}\n")
    found = runtime.InferenceSession(str(tmp_path / "graph" / "model.onnx")).get_outputs()
    assert [output.name for output in found] == outputs


@pytest.mark.process
def test_a_full_disk_leaves_the_old_export_whole(run, saved, tmp_path):
    run("--task", "ner", "--output", tmp_path / "ner")
    before = {path.name: path.read_bytes() for path in (tmp_path / "ner").iterdir()}

    for folder in ("ner", "new"):
        result = python(FULL, "export", str(saved), "--task", "ner", "--output", str(tmp_path / folder))
        assert result.returncode == 2, result.stderr
        message = result.stderr.splitlines()[-1]
        assert message.startswith(f"hf-multitask: error: Nothing could be saved in '{tmp_path / folder}'")
        assert "(file too large)" in message and message.endswith("Free some space, and save again.")
    assert {path.name: path.read_bytes() for path in (tmp_path / "ner").iterdir()} == before
    assert not (tmp_path / "new").exists()
