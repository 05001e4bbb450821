"""Types of installed packages, which are imported once a type is met that is not known otherwise."""

import sys

import pytest
from pages import files_of

from hf_multitask import MultiTaskModel
from hf_multitask.tasks import TASK_TYPES, build_task

FILES = files_of("your-own-task.md")


@pytest.fixture
def install(tmp_path, monkeypatch, registry):
    """Lays a package as pip does: its modules, and a folder with metadata that has the entries."""
    modules = []

    def make(entries, files=FILES):
        site = tmp_path / "site"
        site.mkdir(exist_ok=True)
        for name in ("count_head", "count_task"):
            (site / f"{name}.py").write_text(files[f"{name}.py"])
            modules.append(name)
        info = site / "counting-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1.2\n")
        (info / "RECORD").write_text("count_head.py,,\ncount_task.py,,\ncounting-1.2.dist-info/RECORD,,\n")
        lines = [f"{name} = {module}" for name, module in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[hf_multitask.tasks]", *lines, ""]))
        monkeypatch.syspath_prepend(str(site))

    for name in ("count_head", "count_task"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield make
    for name in modules:
        sys.modules.pop(name, None)


def test_an_entry_is_imported_for_a_type_that_is_not_known(install, build_model, tmp_path):
    install({"count": "count_task"})
    assert build_task("t", {"type": "fill-mask"}).type == "fill-mask"
    build_model()
    assert "count_task" not in sys.modules  # not before
    task = build_task("t", {"type": "count"})
    assert type(task) is TASK_TYPES["count"] is sys.modules["count_task"].Count
    build_model(tasks={"t": task}).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "extension_count_head.py").is_file()


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}], ids=["alone", "trusting"])
def test_a_saved_model_finds_its_type_without_the_code_beside_it(trust, install, build_model, tmp_path):
    install({"words": "count_task"})  # of any name
    build_model(tasks={"t": {"type": "count", "text_column": "text"}}).save_pretrained(tmp_path / "saved")
    from hf_multitask.modeling.extensions import EXTENSIONS
    from hf_multitask.modeling.kinds import KINDS

    for table in (KINDS, EXTENSIONS, TASK_TYPES):
        del table["count"]
    for name in ("count_head", "count_task"):
        del sys.modules[name]
    for path in (tmp_path / "saved").glob("*.py"):
        path.write_text("raise SystemExit('the code of the folder ran')")
    model = MultiTaskModel.from_pretrained(tmp_path / "saved", **trust)
    assert type(model.heads["t"]) is sys.modules["count_head"].CountHead


BROKEN = {
    "no module": ({"count": "absent_module"}, {}, r"\(ModuleNotFoundError: No module named 'absent_module'\)"),
    "an error": ({"count": "count_task"}, {"count_task.py": "1 / 0\n"}, r"\(ZeroDivisionError: division by zero\)"),
    "a refusal": (
        {"other": "count_task"},
        {"count_head.py": FILES["count_head.py"].replace("class CountHead(Head)", "class CountHead(nn.Module)")},
        r"\(TypeError: Type 'count': `head` should be a subclass",
    ),
}


@pytest.mark.parametrize(("entries", "files", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_entry_is_named_with_its_reason(entries, files, reason, install, build_model):
    install(entries, FILES | files)
    ((name, module),) = entries.items()
    message = (
        f"^Task 't' has the unknown type 'count', and the entry point '{name} = {module}' of the package counting 1.2 in "
        f"the group hf_multitask.tasks cannot be imported {reason}.*so fix the package or uninstall it.$"
    )
    with pytest.raises(ValueError, match=message):
        build_task("t", {"type": "count"})
    sys.modules.pop("count_task", None)
    with pytest.raises(ValueError, match=message):
        build_model(tasks={"t": {"type": "count", "text_column": "text"}})
    assert build_task("t", {"type": "fill-mask"}).type == "fill-mask"  # which asks no entry


def test_an_entry_that_is_not_needed_may_be_broken(install):
    install({"count": "count_task", "a": "absent_module"})
    assert build_task("t", {"type": "count"}).type == "count"


def test_a_module_without_the_type_leaves_it_unknown(install):
    install({"count": "count_head"})
    with pytest.raises(ValueError, match=r"unknown type 'count'; the types are .*with register_task first"):
        build_task("t", {"type": "count"})
