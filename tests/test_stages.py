"""Every test has one stage, and a test that does more than its stage allows fails."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from stages import FOLDERS, SLOW_CASES, STAGES, Limits, check_slow_cases, stage_of
from transformers import Trainer

ROOT = Path(__file__).parent


def item(path, *marks, fixtures=()):
    return SimpleNamespace(
        path=ROOT / path,
        nodeid=path,
        fixturenames=fixtures,
        iter_markers=lambda: (getattr(pytest.mark, name).mark for name in marks),
    )


@pytest.mark.parametrize(
    ("path", "marks", "fixtures", "stage"),
    [
        ("data/test_rates.py", (), (), "unit"),
        ("data/test_rates.py", (), ("tmp_path", "arguments"), "trainer"),
        ("data/test_rates.py", (), ("hub", "arguments"), "process"),
        ("data/test_rates.py", ("slow", "process"), ("arguments",), "process"),
        ("training/test_ranks.py", (), (), "trainer"),
        ("training/test_ranks.py", ("unit",), (), "unit"),
        ("training/step/test_rows.py", (), (), "trainer"),
        ("test_readme.py", (), (), "unit"),
    ],
)
def test_the_stage_follows_from_folder_fixtures_and_marks(path, marks, fixtures, stage):
    assert stage_of(item(path, *marks, fixtures=fixtures), ROOT) == stage


def test_a_folder_without_a_stage_is_an_error():
    with pytest.raises(pytest.UsageError, match=r"The folder tests/elsewhere has no stage\. Add it to FOLDERS"):
        stage_of(item("elsewhere/test_server.py"), ROOT)
    with pytest.raises(pytest.UsageError, match=r"marked with two stages: process, unit"):
        stage_of(item("data/test_rates.py", "unit", "process"), ROOT)


def test_every_folder_of_tests_has_a_stage():
    assert FOLDERS.keys() == {path.parent.name for path in ROOT.glob("*/test_*.py")}
    assert set(FOLDERS.values()) <= STAGES.keys()


def test_a_slow_case_that_is_not_there_is_an_error():
    first = min(SLOW_CASES)
    test, _, case = first.partition("[")
    assert case.endswith("]") and (ROOT.parent / first.partition("::")[0]).is_file()
    check_slow_cases({first, *(name for name in SLOW_CASES if name.startswith(f"{test}["))})
    check_slow_cases({"tests/data/test_rates.py::test_others"})
    with pytest.raises(pytest.UsageError, match=r"tests/slow\.txt names a case that is not there: tests/"):
        check_slow_cases({f"{test}[another]"})


def test_slow_cases_are_sorted_so_that_changes_are_small():
    lines = (ROOT / "slow.txt").read_text(encoding="utf-8").splitlines()
    assert lines == sorted(set(lines)) and all("::" in line and line.endswith("]") for line in lines)


@pytest.mark.xdist_group("alone")
def test_groups_of_tests_reach_the_scheduler(request):
    grouped = getattr(request.config.option, "loadgroup", False)
    assert request.node.nodeid.endswith("@alone") == grouped


@pytest.fixture
def limits():
    return Limits()


def caught():
    """Code under test that catches every Exception."""
    try:
        subprocess.run([sys.executable, "-c", ""], check=True)
    except Exception:
        return


@pytest.mark.process
@pytest.mark.parametrize("stage", ["unit", "trainer"])
def test_a_process_ends_a_test_of_another_stage(stage, limits):
    message = rf"stage '{stage}' starts a process .*@pytest.mark.process"
    with pytest.raises(pytest.fail.Exception, match=message), limits.during(stage):
        caught()
    with limits.during("process"):
        caught()
    caught()


@pytest.mark.trainer
def test_a_trainer_ends_a_unit_test(limits):
    message = r"stage 'unit' builds a Trainer.*@pytest.mark.trainer"
    with pytest.raises(pytest.fail.Exception, match=message), limits.during("unit"):
        Trainer()
    with pytest.raises(RuntimeError, match="model"), limits.during("trainer"):
        Trainer()
