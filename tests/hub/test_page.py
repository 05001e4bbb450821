"""What docs/hub.md says is run against the Hub on loopback, as it stands there; its commands in tests/cli."""

from pathlib import Path

from fork_server import python
from pages import DOCS, files_of
from processes import BLOCK

from hf_multitask.modeling.config import FORMAT_VERSION


def test_the_python_of_the_page_runs(hub, backbone_path, tmp_path):
    hub.upload("google-bert/bert-base-uncased", Path(backbone_path()))
    (tmp_path / "examples").symlink_to(DOCS.parent / "examples")
    files = files_of("hub.md")
    assert list(files) == ["push_run.py", "share_model.py", "without_package.py"]
    pushed = python(files["push_run.py"] + files["share_model.py"], folder=tmp_path)
    assert pushed.returncode == 0, pushed.stderr
    pulled = python(BLOCK + files["without_package.py"], folder=tmp_path)
    assert pulled.returncode == 0, pulled.stderr
    assert "'sentiment': {'label': " in pulled.stdout
    assert hub.titles("me/run")[0] == "Training in progress, step 1"
    assert all(hub.repositories[name].private for name in ("me/run", "me/private"))
    assert set(hub.repositories["me/private"].refs) == {"main", "next"}
    assert (tmp_path / "copy" / "pipeline.py").is_file()


def test_the_page_names_the_version_of_the_format():
    assert f"`format_version`, currently {FORMAT_VERSION} " in (DOCS / "hub.md").read_text(encoding="utf-8")
