"""Models with task types of the user's own, loaded where the package, the type, or neither is there."""

import json
import sys
from pathlib import Path

import pytest
import torch
from fork_server import python
from pages import files_of
from parameters import few
from processes import BLOCK, REFUSED, run
from transformers import AutoModel, pipeline
from transformers.dynamic_module_utils import get_relative_import_files

from hf_multitask import MultiTaskModel
from hf_multitask.modeling.kinds import KINDS

TEXT = "Ada Lovelace loved this place."
FILES = files_of("your-own-task.md")

# Each folder named on the command line: logits, what the pipeline answers, and where the code is from.
LOAD = """
import json, sys
import torch
from transformers import AutoModel, AutoTokenizer, pipeline

found = []
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        logits = model(**tokenizer("Ada Lovelace loved this place.", return_tensors="pt")).logits
    pipe = pipeline("multitask", model=folder, trust_remote_code=True)
    answer = pipe("Ada Lovelace loved this place.")
    assert answer == type(pipe)(model=model, tokenizer=tokenizer)("Ada Lovelace loved this place.")
    found.append([{k: v.tolist() for k, v in logits.items()}, answer, type(model).__module__.split(".")[0]])
"""
AGAIN = """
model.save_pretrained(folder + "-again")
tokenizer.save_pretrained(folder + "-again")
"""
PRINT = "\nprint(json.dumps(found))\n"
PACKAGE = "import hf_multitask\n"
UNREGISTERED = """
import contextlib, io, json, sys
from transformers import AutoModel, pipeline
from hf_multitask import MultiTaskModel
from hf_multitask.cli import main

folder, told = sys.argv[1], []
for load in (AutoModel.from_pretrained, MultiTaskModel.from_pretrained, lambda folder: pipeline("multitask", folder)):
    try:
        load(folder)
    except ValueError as problem:
        told.append(str(problem))
with contextlib.redirect_stderr(io.StringIO()) as said:
    code = main(["predict", folder, "A fine place."])
print(json.dumps([told, code, said.getvalue()]))
"""


def fails(script, *arguments):
    """The last line that a script says before it ends in an error."""
    result = python(script, *arguments)
    assert result.returncode == 1, result.stdout
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture
def save(build_model, tasks, tokenizer, tmp_path):
    """Saves a model with a task of the given class beside ours, and says what it does when loaded here."""

    def make(task_class, where="saved"):
        folder = str(tmp_path / where)
        torch.manual_seed(0)
        build_model(tasks=tasks | {"entities": task_class()}).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model = AutoModel.from_pretrained(folder)
        with torch.no_grad():
            logits = model(**tokenizer(TEXT, return_tensors="pt")).logits
        answer = pipeline("multitask", model=folder)(TEXT)
        return folder, {name: value.tolist() for name, value in logits.items()}, json.loads(json.dumps(answer))

    return make


@pytest.fixture
def other(import_file, registry):
    """Another type of the same name and file name, which answers in other words."""

    def make():
        for table in (KINDS, sys.modules["hf_multitask.tasks"].TASK_TYPES):
            table.pop("count", None)
        text = FILES["count_head.py"].replace('"count": round(expected)', '"number": round(expected)')
        import_file("count_head", text, folder="other")
        return import_file("count_task", FILES["count_task.py"], folder="other")

    return make


@pytest.mark.process
def test_it_runs_without_the_package_and_is_saved_from_there(count, save):
    folder, logits, answer = save(count.Count)
    (found,) = run(BLOCK + LOAD + AGAIN + PRINT, folder)
    assert found == [logits, answer, "transformers_modules"]
    (again,) = run(BLOCK + LOAD + PRINT, folder + "-again")
    assert again == found
    assert "trust_remote_code=True" in run(REFUSED, folder)
    # Saved again, the model is the same where the package and the type are.
    assert json.loads(json.dumps(pipeline("multitask", model=folder + "-again")(TEXT))) == answer


def test_what_is_saved_holds_every_file_it_imports_and_no_more(count, save, tmp_path):
    folder, *_ = save(count.Count)
    written = {path.name for path in (tmp_path / "saved").glob("*.py")}
    assert {"extensions.py", "extension_count_head.py"} < written
    assert "count_task" not in " ".join(written)
    for start in ("model.py", "pipeline.py", "config.py"):
        assert all((tmp_path / "saved" / file).is_file() for file in get_relative_import_files(f"{folder}/{start}"))
    assert "from .heads import Head\n" in (tmp_path / "saved" / "extension_count_head.py").read_text()


def test_a_model_without_own_types_takes_none_along(count, build_model, tmp_path):
    build_model().save_pretrained(tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("extension_*"))
    assert "count" not in (tmp_path / "plain" / "extensions.py").read_text()


def test_the_code_travels_as_it_was_registered(count, save, tmp_path):
    (tmp_path / "code" / "count_head.py").write_text("half an edit (")
    save(count.Count)
    assert "class CountHead(Head)" in (tmp_path / "saved" / "extension_count_head.py").read_text()


@pytest.mark.process
def test_every_form_of_import_is_turned(count, import_file, build_model, tmp_path):
    text = FILES["count_head.py"].replace(
        "from hf_multitask.modeling import Head\n",
        '"""é"""\n'
        "from hf_multitask.modeling import (\n    Head,  # base\n    MultiTaskConfig as Config,\n)  # ours\n"
        "from hf_multitask.modeling.heads import IGNORE, PooledLinear\n"
        "if IGNORE:\n    from hf_multitask.modeling.decoding import token_words\n"
        "import numpy.linalg\n",
    )
    own = import_file("Count-Wörter", text)
    sys.modules["hf_multitask"].register_task(count.Count, head=own.CountHead, decode=own.decode_count)
    build_model(tasks={"entities": count.Count()}).save_pretrained(tmp_path / "saved")
    moved = (tmp_path / "saved" / "extension_count_w_rter.py").read_text(encoding="utf-8")
    assert "from .heads import Head  # ours\nfrom .config import MultiTaskConfig as Config  # ours\n" in moved
    assert "from .heads import IGNORE, PooledLinear\nif IGNORE:\n    from .decoding import token_words\n" in moved
    assert "hf_multitask" not in moved
    assert run(BLOCK + "from transformers import AutoModel\nAutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)\nprint(1)", str(tmp_path / "saved")) == 1  # fmt: skip


@pytest.mark.process
def test_two_models_in_one_process_each_run_their_own_code(count, save, other, tmp_path):
    # Folders of one name, a type of one name: all that differs is the code.
    first = save(count.Count, "a/saved")
    second = save(other().Count, "b/saved")
    assert set(first[2]["entities"]) == {"count", "expected"} and set(second[2]["entities"]) == {"number", "expected"}
    found = run(BLOCK + LOAD + PRINT, first[0], second[0], first[0])
    assert [one[:2] for one in found] == [list(model[1:]) for model in (first, second, first)]


@pytest.mark.process
def test_files_of_one_name_travel_beside_each_other(count, save, other, build_model, tokenizer, tmp_path):
    import count_head as first

    class_first = count.Count
    second = other()
    import count_head as renamed

    # Two modules of one file name in different packages.
    renamed.__name__ = renamed.CountHead.__module__ = renamed.decode_count.__module__ = "elsewhere.count_head"
    sys.modules["elsewhere.count_head"] = renamed
    second.Count.type = "number"
    register = sys.modules["hf_multitask"].register_task
    sys.modules["count_head"] = first
    register(class_first, head=first.CountHead, decode=first.decode_count)
    register(second.Count, head=renamed.CountHead, decode=renamed.decode_count)
    folder = str(tmp_path / "both")
    build_model(tasks={"a": class_first(), "b": second.Count()}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del sys.modules["elsewhere.count_head"]
    ((_, answer, _),) = run(BLOCK + LOAD + PRINT, folder)
    assert [set(answer[name]) for name in "ab"] == [{"count", "expected"}, {"number", "expected"}]


def test_where_the_type_is_registered_no_trust_is_needed_and_the_folders_code_stays_unread(count, save, tmp_path):
    folder, _, answer = save(count.Count)
    for path in (tmp_path / "saved").glob("*.py"):
        path.write_text("raise SystemExit('the code of the folder ran')")
    assert isinstance(MultiTaskModel.from_pretrained(folder), MultiTaskModel)
    assert json.loads(json.dumps(pipeline("multitask", model=folder, trust_remote_code=True)(TEXT))) == answer


@pytest.mark.process
def test_where_it_is_not_registered_the_sentence_says_how(count, save, tmp_path):
    folder, *_ = save(count.Count)
    for path in (tmp_path / "saved").glob("*.py"):
        path.write_text("raise SystemExit('the code of the folder ran')")
    sentence = (
        f"Task 'entities' has the unknown type 'count'; the types are {', '.join(sorted({*KINDS} - {'count'}))}. "
        "A type of your own needs register_task first, or trust_remote_code=True to run the code saved with it."
    )
    told, code, line = run(UNREGISTERED, folder)
    assert len(told) == 3 and all(sentence in one for one in told)
    assert (code, line) == (2, f"hf-multitask: error: {sentence}\n")


@pytest.mark.process
def test_trust_brings_the_type_where_only_the_package_is(count, save):
    folder, logits, answer = save(count.Count)
    ((found, said, module),) = run(PACKAGE + LOAD + AGAIN + PRINT, folder)
    assert (found, said, module) == (logits, answer, "hf_multitask")
    for start in (BLOCK, PACKAGE):  # and what is saved from there brings it again
        ((found, said, _),) = run(start + LOAD + PRINT, folder + "-again")
        assert (found, said) == (logits, answer)
    load = "model = hf_multitask.MultiTaskModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
    assert run(PACKAGE + "import sys\n" + load + "print(len(model.heads))", folder) == 3


@pytest.mark.process
def test_trust_in_two_folders_with_different_code_for_one_type_is_refused(count, save, other, tmp_path):
    first, *_ = save(count.Count, "a/saved")
    copy, *_ = save(count.Count, "c/copy")
    second, *_ = save(other().Count, "b/saved")
    assert len(run(PACKAGE + LOAD + PRINT, first, copy)) == 2
    assert "brought other code for that type" in fails(PACKAGE + LOAD, first, second)


@pytest.mark.process
def test_trust_without_code_beside_the_model_says_what_is_missing(count, save, tmp_path):
    folder, *_ = save(count.Count)
    (tmp_path / "saved" / "extensions.py").unlink()
    assert "Task 'entities' has the unknown type 'count'" in fails(PACKAGE + LOAD, folder)


@pytest.mark.parametrize("start", few([BLOCK, PACKAGE], ["alone"], ["alone", "package"]))
def test_it_loads_from_the_hub(count, save, start, hub):
    folder, logits, answer = save(count.Count)
    hub.upload("me/out", Path(folder))
    ((found, said, _),) = run(start + LOAD + PRINT, "me/out")
    assert (found, said) == (logits, answer)
