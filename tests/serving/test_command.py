"""`hf-multitask serve`: mistakes of the user, and processes that get signals."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from asking import Client, wait
from killing import Script
from launch import ROOT, start
from reading import assert_same
from tiny import read_rows

from hf_multitask import MultiTaskPipeline
from hf_multitask.cli import main

SERVE = "import sys; from hf_multitask.cli import main; sys.exit(main(['serve', *sys.argv[1:]]))"
WORKERS = [sys.executable, "-m", "hf_multitask.cli", "serve", "--port", "0", "--workers", "2"]
TASK = ["sentiment"]


@pytest.fixture
def saved(build_model, tokenizer, tmp_path):
    """The folder of a model."""
    build_model().save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def said(capsys):
    """The sentence that a wrong command ends with."""

    def call(*words):
        assert main(["serve", *map(str, words)]) == 2
        out, err = capsys.readouterr()
        line = err.strip().splitlines()[-1]
        assert out == "" and line.startswith("hf-multitask: error: ") and "Traceback" not in err
        return line

    return call


def test_a_port_in_use(saved, said):
    with socket.create_server(("127.0.0.1", 0)) as other:
        line = said(saved, "--port", other.getsockname()[1])
    assert "cannot be used (Address already in use). Choose another --port." in line


def test_addresses_and_models_that_are_none(saved, said, tmp_path):
    assert "The host 'no.such.host.invalid' is not known" in said(saved, "--host", "no.such.host.invalid", "--port", 0)
    assert "cannot be used" in said(saved, "--host", "203.0.113.1", "--port", 0)  # of no interface here
    assert "contains no model" in said(tmp_path, "--port", 0)
    assert "There is no folder" in said(tmp_path / "none", "--port", 0)
    assert "'nerd'" in said(saved, "--port", 0, "--tasks", "nerd")
    assert "does not accept the argument '--tokens'" in said(saved, "--tokens", "x")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("port", "70000", "between 0"),
        ("max_batch_size", "0", "1 or more"),
        ("max_queue", "0", "1 or more"),
        ("workers", "0", "1 or more"),
        ("max_wait_ms", "-1", "between 0 and 60000"),
        ("max_wait_ms", "nan", "between 0 and 60000"),
    ],
)
def test_values_out_of_range(name, value, rule, said):
    line = said("out", f"--{name}", value)
    assert f"`{name}` should be {rule}" in line and f"`{name} = {value}`" in line


def test_a_file_without_a_token(said, tmp_path):
    path = tmp_path / "token"
    for given, reason in ((path, "No such file or directory"), (tmp_path, "Is a directory")):
        assert f"The file '{given}' of --token_file cannot be read ({reason})." in said("out", "--token_file", given)
    for content in (b"", b" \n", b"two words", b"\xff\xfe"):
        path.write_bytes(content)
        line = said("out", "--token_file", path)
        assert "should hold one token" in line and "two words" not in line


@pytest.mark.parametrize("name", ["fastapi", "uvicorn", "prometheus_client"])
def test_the_extra_is_missing(name, said, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    line = said("out")
    assert f"serve needs the package '{name.replace('_', '-')}'" in line
    assert "Run: pip install 'hf_multitask[serve]'" in line


def started(lines):
    """The port of a server that has said where it is."""
    return int(re.search(r"at http://127\.0\.0\.1:(\d+)", "\n".join(lines))[1])


@pytest.mark.process
def test_sigterm_ends_the_server_when_all_is_answered(saved, context, tmp_path, build_model, tokenizer):
    process = Script(context, tmp_path, SERVE, str(saved), "--port", "0", "--max_wait_ms", "20000")
    wait(lambda: process.files[0].exists() and "Serving" in process.files[0].read_text(), 60)
    said = process.files[0].read_text()
    assert said.startswith(f"Serving {saved} (sentiment, ner) at http://127.0.0.1:")
    pipeline = MultiTaskPipeline(model=build_model().eval(), tokenizer=tokenizer, tasks=TASK)
    check_drain(Client(started([said])), pipeline, 12, lambda: process.send(signal.SIGTERM))
    assert process.wait(60) == 0
    assert "Traceback" not in process.files[1].read_text()


def check_drain(client, pipeline, count, send):
    """Requests that wait for a pass when a signal comes are answered as by the pipeline."""
    texts, responses = [row["text"] for row in read_rows("sentiment", "test", count)], []
    bodies = [{"inputs": text, "tasks": TASK} for text in texts]
    asking = threading.Thread(target=lambda: responses.extend(client.ask_all(bodies)))
    asking.start()
    wait(lambda: client.figure("hf_multitask_queue") == count)
    send()
    asking.join(60)
    assert [status for status, _, _ in responses] == [200] * count
    assert_same([answer for _, answer, _ in responses], pipeline(texts))


@pytest.mark.slow
@pytest.mark.process
def test_workers_share_the_port_and_the_figures(saved, build_model, tokenizer):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*WORKERS, str(saved), "--max_wait_ms", "20000"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line.endswith(", 2 workers\n"), process.communicate()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        client, pipeline = (
            Client(started([line])),
            MultiTaskPipeline(build_model().eval(), tokenizer=tokenizer, tasks=TASK),
        )
        check_drain(client, pipeline, 24, lambda: process.send_signal(signal.SIGTERM))
        assert process.wait(60) == 0
        wait(lambda: not [child for child in children if Path(f"/proc/{child}").exists()])
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.process
def test_a_worker_that_cannot_start_ends_all(saved):
    result = start([*WORKERS, str(saved), "--tasks", "nerd"])
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "'nerd'" in result.stderr.splitlines()[-1]
