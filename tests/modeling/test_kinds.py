"""One row says all of a task type: nothing else names types, and a new one touches the files of the checklist."""

import ast
import shutil
from pathlib import Path

import pytest
from fork_server import python
from reading import TASKS

import hf_multitask
from hf_multitask.modeling.kinds import KINDS, kind_of, suggested_type
from hf_multitask.modeling.readers import Reader
from hf_multitask.tasks import TASK_TYPES, build_task

ROOT = Path(hf_multitask.__file__).parent

HEAD = '''"""How long a text is felt to be, as a number."""

from typing import Any, ClassVar

from .heads import SequenceClassificationHead
from .readers import Reader


class LengthHead(SequenceClassificationHead):
    """One number."""

    @classmethod
    def outputs(cls, task):
        return 1


class LengthReader(Reader):
    """A text."""

    reads_words: ClassVar[bool] = False


def decode_length(task, logits, text, token_words) -> Any:
    """The number."""
    return {"length": float(logits[0])}
'''
TASK = '''"""How long a text is felt to be."""

from dataclasses import dataclass
from typing import ClassVar

from .registration import register_task
from .sequence_classification import SequenceClassification


@dataclass(kw_only=True)
class FeltLength(SequenceClassification):
    """A number for a text."""

    type: ClassVar[str] = "felt-length"
    problem_type: str | None = "regression"


register_task(FeltLength)
'''
ROW = """    "felt-length": Kind(
        head=LengthHead, reader=LengthReader(), decode=decode_length, hub="text-classification", aliases=("feltness",)
    ),
"""
USE = """
import json, sys
import torch
from transformers import AutoModel, AutoTokenizer, pipeline
import hf_multitask
from hf_multitask import MultiTaskModel
from hf_multitask.modeling.description import metadata_of, usage
from hf_multitask.tasks import build_task

assert hf_multitask.__file__.startswith(sys.argv[1])
backbone, folder = sys.argv[2:]
model = MultiTaskModel.from_backbone(backbone, tasks={"felt": build_task("felt", {"type": "felt-length"})})
model.save_pretrained(folder)
AutoTokenizer.from_pretrained(backbone).save_pretrained(folder)
model.export_task("felt", folder + "-stock", AutoTokenizer.from_pretrained(backbone))
assert metadata_of(model.config)["pipeline_tag"] == "text-classification"
assert "multitask(" in usage(model.config, "me/felt")
try:
    build_task("felt", {"type": "feltness"})
except ValueError as problem:
    assert "Did you mean 'felt-length'?" in str(problem)
print(json.dumps(list(pipeline("multitask", folder)("A long text.")["felt"])))
"""
BLOCKED = """
import json, sys
sys.modules["hf_multitask"] = None
from transformers import pipeline
print(json.dumps(list(pipeline("multitask", sys.argv[1], trust_remote_code=True)("A long text.")["felt"])))
"""


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """Runs a script where a copy of the package comes first, and gives its last line."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "copy"))

    def run(script, *arguments):
        result = python(script, *map(str, arguments), folder=tmp_path / "copy")
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout.splitlines()[-1]

    return run


@pytest.mark.process
def test_a_new_type_is_a_file_a_file_and_a_row(ask, backbone_path, tmp_path):
    """Beside a page of the documentation and the export in ``tasks/__init__``; nothing else has to know of it."""
    package = tmp_path / "copy" / "hf_multitask"
    shutil.copytree(ROOT, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = {path: path.read_text() for path in package.rglob("*.py")}
    (package / "modeling" / "felt.py").write_text(HEAD)
    (package / "tasks" / "felt_length.py").write_text(TASK)
    kinds, exports = package / "modeling" / "kinds.py", package / "tasks" / "__init__.py"
    start = "KINDS: dict[str, Kind] = {\n"
    text = before[kinds].replace(start, start + ROW)
    kinds.write_text(text.replace("from .heads import", "from .felt import LengthHead, LengthReader, decode_length\nfrom .heads import"))  # fmt: skip
    exports.write_text(before[exports].replace("from .labelled", "from .felt_length import FeltLength\nfrom .labelled"))
    touched = [path for path in package.rglob("*.py") if before.get(path) != path.read_text()]
    assert sorted(str(path.relative_to(package)) for path in touched) == [
        *("modeling/felt.py", "modeling/kinds.py"),
        *("tasks/__init__.py", "tasks/felt_length.py"),
    ]
    saved = tmp_path / "saved"
    assert ask(USE, package, backbone_path(), saved) == '["length"]'
    assert (saved / "felt.py").is_file() and (tmp_path / "saved-stock" / "README.md").is_file()
    assert ask(BLOCKED, saved) == '["length"]'  # it travels as the others do


def names_in(path):
    """The strings of a module that are the name of a type, where docstrings do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs]
    own = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "type"
    }
    return [node.value for node in strings if node.value in KINDS and id(node) not in own]


def test_no_type_is_named_but_in_its_row_and_its_class():
    found = {str(path.relative_to(ROOT)): names_in(path) for path in ROOT.rglob("*.py")}
    assert set(found.pop("modeling/kinds.py")) >= KINDS.keys()
    assert {path: names for path, names in found.items() if names} == {}


def test_the_rows_are_of_the_task_classes():
    assert KINDS.keys() == TASK_TYPES.keys()
    assert TASKS.keys() == {name for name, kind in KINDS.items() if kind.reader.modality == Reader.modality}
    for name, kind in KINDS.items():
        task = build_task("t", {"type": name}).to_dict()
        columns = kind.reader.columns(task)
        assert columns.keys() <= set(kind.reader.fields) and kind.reader.fields[0] in columns
        assert set(columns.values()) <= set(build_task("t", {"type": name}).columns), name
        assert kind.hub and kind_of(task) is kind
        assert kind.decode is not None or kind.reader.writes or type(kind.reader).answer is not Reader.answer
        assert kind.reader.example_of(task) in kind.reader.examples
        for alias in kind.aliases:
            assert suggested_type(alias, KINDS) == f" Did you mean '{name}'?"
