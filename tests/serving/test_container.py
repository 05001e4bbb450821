"""The image: what its files say, and the command line of the container as a process here."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from fnmatch import fnmatch

import pytest
import yaml
from asking import Client, wait
from launch import ROOT, SCRIPTS, start
from reading import TEXT, assert_same

from hf_multitask import MultiTaskPipeline
from hf_multitask.serving.settings import DRAIN_SECONDS


def instructions():
    """Name and rest of every instruction of the Dockerfile."""
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    return [tuple(line.split(maxsplit=1)) for line in "\n".join(lines).replace("\\\n", "").splitlines() if line]


def last(name):
    """What holds in the container: the last instruction of a name."""
    return [rest for one, rest in instructions() if one == name][-1]


def environment():
    return dict(word.split("=", 1) for name, rest in instructions() if name == "ENV" for word in shlex.split(rest))


def compose():
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def copied():
    """What the image has of the repository."""
    rests = [shlex.split(rest) for name, rest in instructions() if name == "COPY"]
    return [name for words in rests if not words[0].startswith("--from") for name in words[:-1]]


def test_the_container_is_no_root_and_starts_the_server_without_a_shell_above_it():
    assert last("USER") == "1000" and last("EXPOSE") == "8000" and environment()["MODEL"] == "/model"
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("ENTRYPOINT") and "CMD" not in names
    words = json.loads(last("ENTRYPOINT"))
    assert words[:2] == ["sh", "-c"] and words[2].startswith("exec hf-multitask serve ")


def test_the_build_has_cpu_torch_by_default_and_names_no_index():
    arguments = dict(rest.split("=") for name, rest in instructions() if name == "ARG")
    assert arguments["TORCH"] == "cpu" and arguments["EXTRAS"] == "serve"
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("Dockerfile", "docker-compose.yml")]
    assert not [text for text in texts if "index-url" in text or "https://" in text]


def test_what_the_image_copies_is_there_and_not_ignored():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(copied()) == sorted(kept)
    assert not [name for name in kept if not (ROOT / name).exists()]


def test_compose_fits_the_image():
    (server,) = compose()["services"].values()
    arguments = {rest.split("=")[0] for name, rest in instructions() if name == "ARG"}
    assert set(server["build"]["args"]) <= arguments
    assert server["ports"] == [f"127.0.0.1:{last('EXPOSE')}:{last('EXPOSE')}"]
    mounts = [volume.removesuffix(":ro").rsplit(":", 1)[1] for volume in server["volumes"]]
    assert mounts == [environment()["MODEL"], environment()["HF_HOME"]]
    assert server["environment"]["MODEL"] == "${MODEL:-/model}"
    assert int(server["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS
    assert server["read_only"] and server["tmpfs"] == ["/tmp"] and server["cap_drop"] == ["ALL"]


@pytest.mark.process
def test_hadolint_finds_nothing():
    program = shutil.which("hadolint", path=f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed")
    result = start([program, str(ROOT / "Dockerfile")])
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
@pytest.mark.process
def test_the_command_of_the_container_serves_a_model_until_sigterm(build_model, tokenizer, tmp_path):
    model = build_model().eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def words(text):
        return [word.replace("8000", str(port)) for word in json.loads(text)]

    variables = {**os.environ, "MODEL": str(tmp_path / "model"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    variables["PATH"] = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    command = [*words(last("ENTRYPOINT")), "--max_queue", "7"]  # an option, after the name of the image
    said, errors = tmp_path / "said", tmp_path / "errors"
    with said.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=out, stderr=err)
    try:
        wait(lambda: said.read_text().endswith("\n") or process.poll() is not None, 240)
        assert said.read_text().endswith(f"at http://0.0.0.0:{port}\n"), errors.read_text()
        client = Client(port)
        wait(lambda: client.get("/health")[0] == 200)
        assert_same(client.ask(TEXT), MultiTaskPipeline(model=model, tokenizer=tokenizer)(TEXT))
        assert client.send("POST", "/predict", json.dumps({"inputs": [TEXT] * 8}))[0] == 413
        check = words(last("HEALTHCHECK").partition(" CMD ")[2])
        assert start([sys.executable, *check[1:]]).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0 and "Traceback" not in errors.read_text()
        assert start([sys.executable, *check[1:]]).returncode == 1
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.process
def test_what_the_image_copies_is_enough_to_build_the_package(tmp_path):
    for name in copied():
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "built", "."]
    result = start(wheel, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [fnmatch(path.name, "hf_multitask-*.whl") for path in (tmp_path / "built").iterdir()] == [True]
