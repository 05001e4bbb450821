"""The tables of ``learning.py``: metrics of the runs in a folder, and differences with their tests."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from suites import STANCES, metric

DRAWS = 20_000
SINGLE = "single"  # the system whose tasks have models of their own
_RUN = re.compile(r"(.+?)-(\d[\d.]*(?:e-?\d+)?x\d+)-(\d+)(?:-(.+))?")  # system, setting, seed, task


def read(output: Path, suite: str) -> dict[str, dict[str, dict[int, Any]]]:
    """By system and setting, the runs by seed; those of single tasks, of all or some, as one."""
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for path in sorted(output.glob(f"{suite}-*/run.json")):
        if not (parts := _RUN.fullmatch(path.parent.name.removeprefix(f"{suite}-"))):
            continue
        system, setting, seed, task = parts.groups()
        result = json.loads(path.read_text(encoding="utf-8"))
        runs = found.setdefault(system, {}).setdefault(setting, {})
        whole = runs.setdefault(int(seed), {"validation": {}, "test": {}, "seconds": {}})
        whole["validation"] |= result["validation"]
        whole["test"] |= {name: np.array(rows) for name, rows in result["test"].items()}
        whole["seconds"][task] = result["seconds"]
    return found


def tuned(system: str, settings: Mapping[str, Mapping[int, Any]], names: Sequence[str]) -> dict[str, str]:
    """By task, the setting with the best validation average over the seeds that the settings have in common.

    It is the same for all tasks, unless each has a model of its own.
    """

    def average(setting: str, seeds: set[int], of: Sequence[str]) -> float:
        return statistics.mean(settings[setting][seed]["validation"][name] for seed in seeds for name in of)

    found: dict[str, str] = {}
    for of in [[name] for name in names] if system == SINGLE else [list(names)]:
        with_all = {setting: seeds_of(runs, of) for setting, runs in settings.items()}
        tried = [setting for setting, seeds in with_all.items() if seeds]
        if not (common := set.intersection(*(with_all[setting] for setting in tried))):
            raise SystemExit(f"The settings of {system} have no seed in common: train {tried} with the same --seeds.")
        found |= dict.fromkeys(of, max(tried, key=lambda setting: average(setting, common, of)))
    return found


def measured(settings: Mapping[str, Mapping[int, Any]], names: Sequence[str]) -> bool:
    """Whether each of these tasks was trained at some setting."""
    return all(any(seeds_of(runs, [name]) for runs in settings.values()) for name in names)


def seeds_of(runs: Mapping[int, Any], names: Sequence[str]) -> set[int]:
    """The seeds with which all of these tasks were trained."""
    return {seed for seed, whole in runs.items() if set(names) <= set(whole["test"])}


def chosen(system: str, settings: Mapping[str, Mapping[int, Any]], names: Sequence[str]) -> dict[int, Any]:
    """By seed, the runs at the best setting; see :func:`tuned`. Seeds that other settings do not have count as well."""
    own = tuned(system, settings, names)
    seeds = set.intersection(*(seeds_of(settings[own[name]], [name]) for name in names))
    return {
        seed: {
            "test": {name: settings[own[name]][seed]["test"][name] for name in names},
            "seconds": sum(
                settings[setting][seed]["seconds"][part]
                for part, setting in (own.items() if system == SINGLE else [(None, own[names[0]])])
            ),
            "settings": own,
        }
        for seed in sorted(seeds)
    }


def compared(ones: Mapping[int, Any], others: Mapping[int, Any], names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """By task, and for ``mean`` and ``stances``: difference, its 95 % interval, and a two-sided p-value."""
    seeds = sorted(set(ones) & set(others))
    chance = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(DRAWS):
        picked = chance.choice(seeds, len(seeds))
        for name in names:
            count = len(ones[seeds[0]]["test"][name])
            rows = chance.integers(count, size=count)
            differences = [
                metric(name, ones[seed]["test"][name][rows]) - metric(name, others[seed]["test"][name][rows])
                for seed in picked
            ]
            drawn[name].append(float(np.mean(differences)))
    found = {}
    groups = {**{name: [name] for name in names}, "mean": list(names)}
    if set(STANCES) <= set(names):
        groups["stances"] = list(STANCES)
    for group, of in groups.items():
        values = np.mean([drawn[name] for name in of], axis=0)
        point = float(
            np.mean(
                [
                    metric(name, ones[seed]["test"][name]) - metric(name, others[seed]["test"][name])
                    for name in of
                    for seed in seeds
                ]
            )
        )
        tail = min(float(np.mean(values <= 0)), float(np.mean(values >= 0)))
        found[group] = (point, *map(float, np.quantile(values, [0.025, 0.975])), min(1.0, 2 * max(tail, 1 / DRAWS)))
    return found


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """P-values corrected for their number (Holm 1979)."""
    found, most = {}, 0.0
    for number, (name, value) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        most = max(most, min(1.0, value * (len(values) - number)))
        found[name] = most
    return found


def show_validation(runs: Mapping[str, Mapping[str, Mapping[int, Any]]], names: Sequence[str]) -> None:
    """Print the validation metrics of every setting, each at its best epoch: for choosing, before test is read."""
    print("| system | setting | mean | " + " | ".join(names) + " | minutes | seeds |")
    print("|---" * (len(names) + 5) + "|")
    for system, settings in runs.items():
        for setting, by_seed in settings.items():
            by_seed = {seed: by_seed[seed] for seed in sorted(seeds_of(by_seed, names))}
            found = [whole["validation"] for whole in by_seed.values()]
            if not found:
                continue
            means = [statistics.mean(one[name] for name in names) for one in found]
            spread = f" [{min(means):.3f}, {max(means):.3f}]" if len(means) > 1 else ""
            cells = [f"{statistics.mean(one[name] for one in found):.3f}" for name in names]
            minutes = statistics.mean(sum(whole["seconds"].values()) for whole in by_seed.values()) / 60
            mean = f"{statistics.mean(means):.3f}{spread}"
            print(f"| {system} | {setting} | {mean} | {' | '.join(cells)} | {minutes:.1f} | {len(found)} |")


def show_test(runs: Mapping[str, Mapping[str, Mapping[int, Any]]], names: Sequence[str]) -> None:
    """Print the test metrics of every system at its best setting, and its differences from models of single tasks."""
    picked = {system: chosen(system, settings, names) for system, settings in runs.items() if measured(settings, names)}
    print("| system | mean | " + " | ".join(names) + " | minutes | seeds |")
    print("|---" * (len(names) + 4) + "|")
    for system, by_seed in picked.items():
        scores = {name: [metric(name, whole["test"][name]) for whole in by_seed.values()] for name in names}
        means = [statistics.mean(scores[name][place] for name in names) for place in range(len(by_seed))]
        cells = [f"{statistics.mean(scores[name]):.3f}" for name in names]
        spread = f" [{min(means):.3f}, {max(means):.3f}]" if len(means) > 1 else ""
        minutes = statistics.mean(whole["seconds"] for whole in by_seed.values()) / 60
        mean = f"{statistics.mean(means):.3f}{spread}"
        print(f"| {system} | {mean} | " + " | ".join(cells) + f" | {minutes:.1f} | {len(by_seed)} |")
        settings = next(iter(by_seed.values()))["settings"]
        print(f"    settings: {settings if len(set(settings.values())) > 1 else settings[names[0]]}")
    for system, by_seed in picked.items():
        if system == SINGLE or SINGLE not in picked:
            continue
        found = compared(by_seed, picked[SINGLE], names)
        corrected = holm({name: found[name][3] for name in names})
        print(f"\n{system} against single, points:")
        for name, (point, low, high, value) in found.items():
            p = corrected.get(name, value)
            print(f"  {name:10s} {100 * point:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]  p = {p:.3f}")
