"""What docs/quickstart.md says is run, command by command, on files like those that it describes."""

import csv
import json
import re
import shlex
import signal
import time

import pytest
from killing import Script
from pages import DOCS
from tiny import read_rows

from hf_multitask.cli import main

PAGE = (DOCS / "quickstart.md").read_text(encoding="utf-8")
TEAMS = ("billing", "shipping", "technical")
SERVE = "import sys; from hf_multitask.cli import main; sys.exit(main(['serve', *sys.argv[1:]]))"


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with the two files of the page."""
    texts = [row["text"] for row in read_rows("sentiment", "train", 300)]
    labels = [row["label"] for row in read_rows("sentiment", "train", 300)]
    teams = [TEAMS[number % 3] for number in range(300)]
    for name, header, second in (("reviews", ("text", "label"), labels), ("tickets", ("message", "team"), teams)):
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *zip(texts, second, strict=True)])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.process
def test_the_six_commands_run_and_print_what_the_page_shows(desk, backbone_path, context, capsys):
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    found = re.findall(r"```bash\n(hf-multitask [^\n]*)\n```\n+(?:```\n(.*?)```)?", PAGE, flags=re.DOTALL)
    assert [command.split()[1] for command, _ in found] == ["init", "train", "train", "evaluate", "predict", "serve"]
    more = {"init": ["--backbone", backbone_path()], "train": ["--use_cpu", "true", "--report_to", "none"]}
    for command, shown in found[:-1]:
        words = shlex.split(command)[1:]
        assert main(words + more.get(words[0], [])) == 0
        printed = capsys.readouterr().out
        for line in shown.splitlines():
            assert all(part.strip() in printed for part in line.split("...")), line
    assert set(json.loads(printed)) == {"reviews", "tickets"}
    assert json.loads(printed)["tickets"]["label"] in TEAMS
    command, shown = found[-1]
    process = Script(context, desk, SERVE, *command.split()[2:], "--port", "0")
    until = time.monotonic() + 200
    while not (said := process.files[0].read_text() if process.files[0].exists() else "").endswith("\n"):
        assert process.process.is_alive() and time.monotonic() < until, process.files[1].read_text()
        time.sleep(0.01)
    port = re.search(r":(\d+)\n", said)[1]
    assert said == shown.replace("8000", port)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names = {}
    exec(block.replace("8000", port), names)
    assert set(names["answers"]) == {"reviews", "tickets"}
    assert capsys.readouterr().out.strip() in TEAMS
    process.send(signal.SIGTERM)
    assert process.wait(60) == 0
