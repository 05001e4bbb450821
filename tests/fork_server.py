"""Interpreters that start at once: forked from a process that has imported what all scripts import.

An interpreter takes seven seconds to import torch and transformers, and a fork takes none. Nothing of the package is
imported before the fork, and nothing that reads the environment of the Hub's client unless the script has one that is
known: that of the suite, or that of its Hub on loopback.

Run as a script, this file is the server. It reads one job per line, forks, and answers with the exit code of the child.
"""

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

# All of it is imported by transformers or datasets; none of it reads the variables of the Hub.
SLOW = ("torch._dynamo", "torch.distributed.tensor", "sympy", "scipy.optimize", "sklearn.metrics", "pyarrow.dataset")
SLOW += ("pandas", "tokenizers", "safetensors.torch")
# These read them, so they are imported before the fork only where those of the script are known.
READERS = ("transformers.modeling_utils", "transformers.pipelines", "transformers.trainer")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def hub_variables(environment):
    """Those that are read when the client is imported, and not when it is used."""
    names = [name for name in environment if name.startswith(("HF_", "HUGGINGFACE_")) and name != "HF_TOKEN"]
    return {name: environment[name] for name in names}


START = dict(os.environ)
KNOWN = [hub_variables(START)]


def remember(environment: dict) -> None:
    """Make an environment of the Hub's client known, which must be the same for many scripts."""
    variables = hub_variables(START | environment)
    if variables not in KNOWN:
        KNOWN.append(variables)


class Server:
    """A process that forks a child for every script, one after the other."""

    def __init__(self, modules: tuple[str, ...], variables: dict):
        self.process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=START | variables | ONE_THREAD,
            start_new_session=True,
        )

    def run(self, job: dict, timeout: float) -> int:
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], timeout)[0]:
                raise TimeoutError(f"A script did not end within {timeout} seconds.")
            return int(self.process.stdout.readline())
        except BaseException:  # of the test's own time limit too: the next script gets another server
            self.end()
            raise

    def end(self) -> None:
        server.cache_clear()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with self.process:
            pass


@cache
def server(known: int | None) -> Server:
    """The server of a known environment, by its place, or the one of all others."""
    return Server(SLOW, {}) if known is None else Server((*SLOW, *READERS), KNOWN[known])


def python(
    script: str, *arguments: str, folder: str | Path = ".", timeout: float = 500, **environment: str
) -> subprocess.CompletedProcess:
    """What ``python -c script arguments`` does in a folder, with its output and errors."""
    sys.audit("tests.fork", "python -c")
    wanted = os.environ | ONE_THREAD | environment
    variables = hub_variables(wanted)
    known = KNOWN.index(variables) if variables in KNOWN else None
    with tempfile.TemporaryDirectory() as said:
        files = [Path(said, name) for name in ("out", "err")]
        job = {"script": script, "arguments": arguments, "environment": wanted, "folder": os.path.abspath(folder)}
        job["missing"] = [name for name, module in sys.modules.items() if module is None]
        code = server(known).run(job | {"files": [str(file) for file in files]}, timeout)
        out, err = (file.read_text(encoding="utf-8") for file in files)
    return subprocess.CompletedProcess(["python", "-c", script, *arguments], code, out, err)


def shell(line: str, **kwargs) -> subprocess.CompletedProcess:
    """What a line of a shell does that calls ``hf-multitask``."""
    program, *words = shlex.split(line, comments=True)
    assert program == "hf-multitask"
    return python("import sys; from hf_multitask.cli import main; sys.exit(main(sys.argv[1:]))", *words, **kwargs)


def serve(modules: list[str]) -> dict:
    """Fork for every job that comes; the job, in the child."""
    import gc
    import importlib

    for module in modules:
        importlib.import_module(module)
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            return json.loads(line)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()
    raise SystemExit


def become(job: dict) -> None:
    """Take over the files, the folder, the environment and the arguments of a job."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    opened = [os.open(file, os.O_WRONLY | os.O_CREAT) for file in job["files"]]
    for number, file in enumerate([nothing, *opened]):
        os.dup2(file, number)
        os.close(file)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.modules.update(dict.fromkeys(job["missing"]))  # what the test has set aside, as its pictures
    sys.argv = ["-c", *job["arguments"]]
    sys.path[:] = ["", *job["environment"].get("PYTHONPATH", "").split(os.pathsep), *sys.path[1:]]


if __name__ == "__main__":
    todo = serve(sys.argv[1:])
    become(todo)
    names = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile(todo["script"], "<string>", "exec"), names)
