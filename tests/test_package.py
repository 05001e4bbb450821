"""The built package: complete, valid for an index, and running where its source is not."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from hf_multitask import __version__

pytestmark = [pytest.mark.slow, pytest.mark.process]
ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", ".*cache", "__pycache__", "*.egg-info", "build", "dist", "out", ".venv")
USE = """
import hf_multitask, hf_multitask_cli, sys
from transformers import AutoConfig, AutoModel
assert all(sys.argv[1] in module.__file__ for module in (hf_multitask, hf_multitask_cli))
assert AutoConfig.for_model("multitask") is not None
"""


def run(*words, folder, **environment):
    result = subprocess.run(words, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_wheel_and_source_distribution_build_pass_the_check_and_run(tmp_path):
    pytest.importorskip("build", reason="the extra 'release' is not installed")
    pytest.importorskip("twine", reason="the extra 'release' is not installed")
    source, built, site = (tmp_path / name for name in ("source", "built", "site"))
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built), folder=source)
    shutil.rmtree(source)
    files = sorted(map(str, built.iterdir()))
    wheel, archive = files[::-1] if files[0].endswith(".gz") else files
    assert "PASSED" in run(sys.executable, "-m", "twine", "check", "--strict", *files, folder=tmp_path)
    with zipfile.ZipFile(wheel) as packing:
        names = set(packing.namelist())
    assert {"hf_multitask_cli.py", "hf_multitask/py.typed", "hf_multitask/modeling/handler.py"} <= names
    assert not [name for name in names if name.split("/")[0] in ("tests", "examples", "benchmarks")]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(archive) as packing:
        packed = {name.partition("/")[2] for name in packing.getnames()}
    assert {"README.md", "LICENSE", "setup.cfg", "pyproject.toml", "hf_multitask/py.typed"} <= packed
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), wheel, folder=tmp_path)
    where = {"PYTHONPATH": str(site)}
    run(sys.executable, "-c", USE, str(site), folder=tmp_path, **where)
    shown = run(str(site / "bin" / "hf-multitask"), "version", folder=tmp_path, **where)
    assert f"hf_multitask     {__version__}" in shown
