"""Compares the working tree with an earlier revision: the same small trainings, and every checkpoint under the other.

A refactoring should leave no trace, so nothing may differ: the final weights are bit-identical, and so are the log
without its timings and ``multitask_state.json``; a checkpoint that one side writes is resumed under the other and ends
in the same weights. Settings are those of the rank tests and every balancer and aggregator, in float64 and float32, in
one process and on two ranks. Both revisions run on this machine at the same time, and no result is kept. Torch
operations of a plain step are counted as well, and may not become more. Exit code 1 says that something differs::

    python tests/compare.py --quick                  # HEAD; minutes
    python tests/compare.py main --match 'gradnorm|upgrad'
"""

import argparse
import importlib
import io
import json
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from copy import deepcopy
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path[:0] = [str(TESTS), str(TESTS / "training")]
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

from safetensors.torch import load_file

# Imported before processes are forked: starting interpreters takes longer than the trainings. Not the package itself,
# of which each side imports its own, nor what imports it.
WARM = (
    *(
        "accelerate",
        "datasets",
        "evaluate",
        "matplotlib.pyplot",
        "scipy.optimize",
        "seqeval.metrics",
        "sklearn.metrics",
    ),
    *("tiny", "torch.distributed.fsdp", "torchjd.aggregation", "transformers.pipelines", "transformers.trainer"),
)
DTYPES = ("float64", "float32")
QUICK = {
    1: {"rare", "texts", "streams", "poisoned", "measured", "adapters", "stopped"}
    | {"balancing-uncertainty", "balancing-gradnorm", "balancing-famo-exact", "balancing-coba"}
    | {"aggregation-upgrad", "aggregation-gradvac", "aggregation-graddrop", "aggregation-cr_mogm"},
    2: {"measured-rare"},
}
SILENT = 600  # seconds without a result after which a side is taken to hang
SHOWN = 3  # values of one kind that differ


def plan(world):
    """Every setting of so many processes, by a name that says which."""
    from layouts import describe
    from methods import METHODS
    from test_ranks import MEASURED, jobs

    every = [*jobs(world), *({**job, "batch": 16 // world} for job in MEASURED)]
    every += [
        {"description": describe(word, max_steps=5, **args), "batch": 32 // world, "accumulation": 1}
        for word, args in METHODS.items()
    ]
    settings = {}
    for place, job in enumerate(every):
        for dtype in DTYPES:
            setting = deepcopy(job)
            if dtype != job["description"]["dtype"] and job["description"]["dtype"] != DTYPES[0]:
                continue  # made for float32
            setting["description"]["dtype"] = dtype
            if job["accumulation"] == 1 and place % 2 and dtype != DTYPES[0]:
                setting |= {"batch": 8 // world, "accumulation": 4}
            layout = f"{world}x{setting['batch']}x{setting['accumulation']}"
            name = f"{setting['description']['name']}-{dtype}-{layout}"
            settings[name] = {**setting, "name": name}
    return list(settings.values())


def chosen(world, given):
    """The settings that are asked for."""
    found = plan(world)
    if given.quick:
        of_quick = [setting for setting in found if setting["description"]["name"] in QUICK[world]]
        found = list({setting["description"]["name"]: setting for setting in reversed(of_quick)}.values())[::-1]
    return [setting for setting in found if re.search(given.match, setting["name"])]


def export(revision, folder):
    """The package as it was at a revision."""
    command = ["git", "-C", str(ROOT), "archive", revision, "hf_multitask"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")


def values(thing, path=""):
    """Every value of nested dicts and lists, by its path."""
    if isinstance(thing, dict | list) and thing:
        pairs = thing.items() if isinstance(thing, dict) else enumerate(thing)
        return {key: value for name, inner in pairs for key, value in values(inner, f"{path}/{name}").items()}
    return {path: json.dumps(thing)}


def differences(before, now, kind):
    """What differs between two records of a training, a line for each kind of thing."""
    for part in dict.fromkeys([*before, *now]):
        ones, others = values(before.get(part)), values(now.get(part))
        different = [path for path in dict.fromkeys([*ones, *others]) if ones.get(path) != others.get(path)]
        if different:
            told = "; ".join(
                f"{path} is {others.get(path, 'missing')}, was {ones.get(path, 'missing')}"
                for path in different[:SHOWN]
            )
            more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
            yield f"{kind}: {part}: {told}{more}"


def different_weights(before, now, kind):
    """A line if the weights of two trainings are not bit-identical."""
    ones, others = load_file(before / "weights.safetensors"), load_file(now / "weights.safetensors")
    different = [
        name
        for name in dict.fromkeys([*ones, *others])
        if name not in ones
        or name not in others
        or ones[name].dtype != others[name].dtype
        or ones[name].shape != others[name].shape
        or ones[name].numpy().tobytes() != others[name].numpy().tobytes()
    ]
    if different:
        both = [name for name in different if name in ones and name in others]
        most = max((float((ones[name] - others[name]).abs().max()) for name in both), default=float("nan"))
        yield f"{kind}: {len(different)} of {len(ones)} weights differ by up to {most:.1e}, such as {different[0]}"


def compare(name, sides):
    """What differs in one setting."""
    if name == "operations":
        before, now = (json.loads((side / name / "record.json").read_text()) for side in sides)
        print(f"  operations of a plain step: {now['ours']}, was {before['ours']}; the plain Trainer's {now['plain']}")
        if now["ours"] > before["ours"]:
            yield f"a plain step has {now['ours']} torch operations, and had {before['ours']}"
        return
    records = {}
    for kind in ("whole", "resumed"):
        folders = [side / name / kind for side in sides]
        records[kind] = [
            json.loads((folder / "record.json").read_text()) if (folder / "record.json").exists() else {}
            for folder in folders
        ]
        failures = [record.get("failure", "") if record else "no checkpoint" for record in records[kind]]
        if any(failures):
            for side, failure in zip(("the revision", "the working tree"), failures, strict=True):
                if failure:
                    yield f"{kind}: {side} failed: {failure}"
            return
        yield from differences(*records[kind], kind)
        if kind == "whole":
            yield from different_weights(*folders, kind)
    before, now = sides
    yield from different_weights(before / name / "whole", before / name / "resumed", "working tree -> revision")
    yield from different_weights(before / name / "whole", now / name / "resumed", "revision -> working tree")


def fork(function, *arguments):
    """A process that has imported all that is slow to import."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def prepare(given, scratch):
    """Write down the settings, which the working tree makes, and a model for them and one to count operations of."""
    sys.path.insert(0, str(ROOT))
    (scratch / "plan.json").write_text(json.dumps([[world, chosen(world, given)] for world in (1, 2)]))

    from tiny import ALL, make_tokenizer, save_backbone
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    save_backbone("bert", scratch / "backbone")
    config = ALL["bert"]()
    config.num_hidden_layers = 4
    AutoModel.from_config(config).save_pretrained(scratch / "four")
    make_tokenizer("bert").save_pretrained(scratch / "four")


def work(package, folder, environment, words):
    """Be a rank of a side; what it prints is in a file."""
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, str(package))
    importlib.import_module("comparing").main(package, *words)


def ranks(world):
    """The environment of each process of a side."""
    if world == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    together |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    return [{**together, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def run(world, settings, packages, backbone, scratch):
    """Run settings on both sides at once; every line that differs."""
    sides = [scratch / f"{name}-{world}" for name in ("before", "now")]
    listed = scratch / f"settings-{world}.json"
    listed.write_text(json.dumps(settings))
    processes, found, problem = [], [], None
    for package, side, other in zip(packages, sides, reversed(sides), strict=True):
        side.mkdir()
        words = [listed, str(backbone), other]
        processes += [fork(work, package, side, environment, words) for environment in ranks(world)]
    try:
        for number, setting in enumerate(settings, 1):
            name = setting["name"]
            needed = ["record.json"] if name == "operations" else [f"done-{rank}.json" for rank in range(world)]
            problem = wait(processes, [side / name / file for side in sides for file in needed])
            lines = [*([problem] if problem else []), *(() if problem else compare(name, sides))]
            print(f"[{number}/{len(settings)}] {name}: {'DIFFERS' if lines else 'same'}", flush=True)
            for line in lines:
                print(f"  {name}: {line}", flush=True)
                found.append(line)
            if problem:
                for side in sides:
                    print((side / "output.txt").read_text()[-3000:])
                break
            for side in sides:
                shutil.rmtree(side / name)
        for process in processes:
            process.join(0 if problem else None)
    finally:
        for process in processes:
            process.terminate()
    return found


def wait(processes, files):
    """Wait for files of both sides; what keeps them from coming."""
    end = time.monotonic() + SILENT
    while not all(file.exists() for file in files):
        if codes := [process.exitcode for process in processes if process.exitcode]:
            return f"a side ended with exit code {codes[0]}"
        if time.monotonic() > end:
            return f"a side gave no result in {SILENT} seconds"
        time.sleep(0.1)
    return None


def main():
    """Compare, and say with the exit code whether all is the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", nargs="?", default="HEAD")
    parser.add_argument("--quick", action="store_true", help="some methods, in minutes")
    parser.add_argument("--match", default="", metavar="PATTERN", help="only settings whose name this expression finds")
    given = parser.parse_args()
    begun, found, count = time.monotonic(), [], 0
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        export(given.revision, scratch / "before")
        for name in WARM:
            importlib.import_module(name)
        fork(prepare, given, scratch).join()
        packages = [scratch / "before", ROOT]
        for world, settings in json.loads((scratch / "plan.json").read_text()):
            if world == 1 and re.search(given.match, "operations"):
                settings.insert(0, {"name": "operations", "backbone": str(scratch / "four")})
            if settings:
                print(f"{world} process{'es' if world > 1 else ''}, {len(settings)} settings", flush=True)
                found += run(world, settings, packages, scratch / "backbone", scratch)
                count += len(settings)
    print(f"{count} settings, {len(found)} differences, {time.monotonic() - begun:.0f} s")
    if not count:
        parser.error(f"no setting is named like {given.match!r}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
