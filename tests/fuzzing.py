"""Cases that are made at random, each run in a child of this warm process, within a minute and two gigabytes."""

import contextlib
import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

SECONDS, BYTES = 60, 2 << 30
CRASHED = 99


def resident(pid):
    """Bytes that a process holds in memory."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[1]) * resource.getpagesize()


def queued(pid):
    """Seconds that the threads of a process have waited for a core, which on a busy machine is no hang."""
    seconds = 0.0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            seconds += int(path.read_text().split()[1]) / 1e9
    return seconds


def in_child(run, folder):
    """Exit code of ``run()`` in a forked child, what it wrote to standard error, and what the parent saw."""
    told = folder / "stderr.txt"
    pid = os.fork()
    if pid == 0:
        code = CRASHED
        try:
            with told.open("w") as file:
                os.dup2(file.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
                warnings.resetwarnings()  # which pytest makes errors, and a command does not
                code = run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code or 0)
    base, begin, seen = resident(os.getpid()), time.monotonic(), ""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code, told.read_text(errors="replace"), seen
        hangs = time.monotonic() - begin > SECONDS and time.monotonic() - begin - queued(pid) > SECONDS
        if hangs or resident(pid) - base > BYTES:
            seen = "a hang" if hangs else "too much memory"
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def fault(code, told, seen):
    """What is wrong with the end of a case, in words; None where it ended as it should."""
    if seen:
        return seen
    if "Traceback" in told or code not in (0, 2):
        return f"exit code {code}"
    lines = [line for line in told.splitlines() if "hf-multitask: error:" in line]
    if code == 2 and len(lines) != 1:
        return "no sentence"
    return None


def run_cases(kind, count, make, tmp_path):
    """Run ``make(number, folder)()`` for every number, and give the faults; one that was interrupted goes on.

    With ``HF_MULTITASK_FUZZ`` naming a folder, what was done is kept there, a line per case: those without are run.
    """
    kept = os.environ.get("HF_MULTITASK_FUZZ")
    record = Path(kept or tmp_path) / f"{kind}.jsonl"
    record.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    if record.exists():
        done = {entry["case"]: entry for entry in map(json.loads, record.read_text().splitlines())}
    gc.collect()
    gc.freeze()  # a child that collects garbage would copy all of the parent's memory
    for number in sorted(set(range(count)) - done.keys()):
        folder = tmp_path / f"{kind}-{number}"
        folder.mkdir()
        code, told, seen = in_child(make(number, folder), folder)
        entry = {"case": number, "code": code, "fault": fault(code, told, seen)}
        if entry["fault"]:
            entry["told"] = told[-2000:]
        done[number] = entry
        with record.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if not entry["fault"]:
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            folder.rmdir()
    return [entry for entry in done.values() if entry["fault"]]
