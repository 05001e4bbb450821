"""The documentation site builds without a warning, with every page and every public name."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.process
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra 'docs' is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"api", "changelog", "contributing", "measurements"}
    notebooks = {path.stem for path in (ROOT / "examples" / "notebooks").glob("*.ipynb")}
    pages |= {f"notebooks/{name}" for name in notebooks}
    assert all((tmp_path / page / "index.html").is_file() for page in pages) and (tmp_path / "index.html").is_file()
    assert {path.stem.rpartition("-")[0] for path in (tmp_path / "notebooks").glob("*.png")} == notebooks
    page = (tmp_path / "notebooks" / "quickstart" / "index.html").read_text(encoding="utf-8")
    assert 'href="../../tasks/"' in page and 'src="../quickstart-1.png"' in page
    api = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r":(class|func|meth|data|mod|math):<code>", api)
    for package in ("hf_multitask", "hf_multitask.aggregation", "hf_multitask.hub"):
        module = importlib.import_module(package)
        names = [name for name in module.__all__ if callable(getattr(module, name))]
        assert names and all(f'.{getattr(module, name).__qualname__}"' in api for name in names)


def test_pictures_are_small_and_shown():
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    pictures = sorted((ROOT / "docs").glob("*.png"))
    assert len(pictures) >= 6
    for path in pictures:
        assert path.stat().st_size < 150_000 and f"]({path.name})" in pages, path.name
