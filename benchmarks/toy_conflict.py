"""Trajectories of the aggregators on the two-objective problem of CAGrad and Nash-MTL, and their end points.

The problem and its five starting points are those of Multi-Task Learning as a Bargaining Game (ICML 2022), appendix,
and of Conflict-Averse Gradient Descent (NeurIPS 2021), section 5.1: two losses of two parameters, of which the first is
ten times smaller than the second, with a front of Pareto-optimal points from (-7, -8.4) to (7, -8.4). Adam, float64,
from every starting point; the papers make 35,000 and 100,000 steps at a learning rate of 1e-3. Here a step replaces ten
of them: the rate is 1e-2, and the decay of Adam in one step equals that of ten steps in the papers. A method reaches
the front from a point if it ends within ``FRONT`` of it. The plots show the losses, with the front in gray::

    python benchmarks/toy_conflict.py --output docs/aggregation-toy.png
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_multitask.aggregation import Blocks, build_aggregator, combine

STARTS = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
SCALE = 0.1  # of the first loss
METHODS: dict[str, dict[str, Any]] = {
    "sum": {},
    "pcgrad": {},
    "gradvac": {},
    "cagrad": {"c": 0.4},
    "mgda": {},
    "imtl_g": {},
    "nash_mtl": {},
    "aligned_mtl": {},
    "fairgrad": {},
    "upgrad": {},
    "dualproj": {},
    "config": {},
}
LOWEST = 5e-6
BETAS = (0.9**10, 0.999**10)
LEVEL = -8.4  # of the front; the bowls' bottom is at -8, and the tanh before them draws it down
FRONT = 0.2  # how near to the front a point counts as on it
SETTLED = 1500  # steps there after which a method is done


def losses(points: torch.Tensor) -> torch.Tensor:
    """Both losses at points (..., 2), as (..., 2)."""
    first, second = points[..., 0], points[..., 1]
    upper, lower = torch.tanh(0.5 * second).clamp(min=0), torch.tanh(-0.5 * second).clamp(min=0)
    steep = [
        (0.5 * (-first - 7) + torch.tanh(second)).abs().clamp(min=LOWEST).log() + 6,
        (0.5 * (-first + 3) - torch.tanh(second) + 2).abs().clamp(min=LOWEST).log() + 6,
    ]
    bowls = [((first - at) ** 2 + 0.1 * (second + 8) ** 2) / 10 - 20 for at in (7, -7)]
    both = [upper * one + lower * other for one, other in zip(steep, bowls, strict=True)]
    return torch.stack([SCALE * both[0], both[1]], -1)


def gradients(first: float, second: float) -> torch.Tensor:
    """The gradients of both losses at a point, (2, 2), computed directly, which is faster than autograd."""
    half, whole = math.tanh(0.5 * second), math.tanh(second)
    slope = 0.5 * (1 - half**2)
    rows = []
    insides = (0.5 * (-first - 7) + whole, 1 - whole**2), (0.5 * (-first + 3) - whole + 2, whole**2 - 1)
    for (inside, by_second), at, scale in zip(insides, (7, -7), (SCALE, 1.0), strict=True):
        row = [0.0, 0.0]
        if second >= 0:  # and both at 0, as autograd has it
            level = math.log(max(abs(inside), LOWEST)) + 6
            steep = 1 / inside if abs(inside) > LOWEST else 0.0
            row = [row[0] + half * -0.5 * steep, row[1] + half * by_second * steep + slope * level]
        if second <= 0:
            level = ((first - at) ** 2 + 0.1 * (second + 8) ** 2) / 10 - 20
            row = [row[0] - half * 0.2 * (first - at), row[1] - half * 0.02 * (second + 8) - slope * level]
        rows.append([scale * value for value in row])
    return torch.tensor(rows, dtype=torch.float64)


def distance(point: torch.Tensor) -> float:
    """The distance of a point from the front, approximately the segment between (-7, LEVEL) and (7, LEVEL)."""
    first, second = point.tolist()
    return math.hypot(max(abs(first) - 7, 0.0), second - LEVEL)


def descend(method: str, start: Sequence[float], steps: int, rate: float) -> torch.Tensor:
    """Points that a method passes, with Adam, (steps + 1, 2) at most."""
    aggregator: Any = build_aggregator(method, METHODS[method])
    x = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    blocks = Blocks([x])
    point, mean, square, points = list(start), [0.0, 0.0], [0.0, 0.0], [list(start)]
    near = 0
    for step in range(1, steps + 1):
        blocks.begin(2)
        for task, gradient in enumerate(gradients(*point)):
            blocks.add(x, task, gradient)
        blocks.close()
        combine(aggregator, blocks, ("first", "second"), seed=step)
        for axis, value in enumerate(x.grad.tolist()):  # type: ignore[union-attr]
            mean[axis] = BETAS[0] * mean[axis] + (1 - BETAS[0]) * value
            square[axis] = BETAS[1] * square[axis] + (1 - BETAS[1]) * value**2
            size = math.sqrt(square[axis] / (1 - BETAS[1] ** step)) + 1e-8
            point[axis] -= rate * mean[axis] / (1 - BETAS[0] ** step) / size
        points.append(list(point))
        near = near + 1 if math.hypot(max(abs(point[0]) - 7, 0.0), point[1] - LEVEL) < FRONT else 0
        if near == SETTLED:
            break
    return torch.tensor(points, dtype=torch.float64)


def run(methods: Sequence[str], steps: int, rate: float) -> dict[str, list[torch.Tensor]]:
    """Trajectories by method, one for every starting point."""
    return {method: [descend(method, start, steps, rate) for start in STARTS] for method in methods}


def plot(found: dict[str, list[torch.Tensor]], path: Path) -> None:
    """Draw the losses that every method passes, and the front."""
    from matplotlib import pyplot
    from PIL import Image

    columns = 4
    figure, axes = pyplot.subplots(
        -(-len(found) // columns), columns, figsize=(10, 7.2), sharex=True, sharey=True, squeeze=False
    )
    front_x = torch.stack([torch.linspace(-7, 7, 200), torch.full((200,), LEVEL)], -1).double()
    front = losses(front_x)
    for axis, (method, trajectories) in zip(axes.flat, found.items(), strict=False):
        axis.plot(front[:, 0], front[:, 1], color="0.6", linewidth=4, solid_capstyle="round")
        for points in trajectories:
            values = losses(points)[:: max(1, len(points) // 500)]
            (line,) = axis.plot(values[:, 0], values[:, 1], linewidth=1)
            axis.plot(*values[0], marker="o", markersize=3, color=line.get_color())
            axis.plot(*losses(points[-1]), marker="*", markersize=8, color=line.get_color())
        reached = sum(distance(points[-1]) < FRONT for points in trajectories)
        axis.set_title(f"{method}: {reached} of {len(STARTS)}", fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("first loss", fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("second loss", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=48).save(path, optimize=True)


def main(words: Sequence[str] | None = None, tell: Callable[[str], None] = print) -> dict[str, list[float]]:
    """Run, print and draw; return the distances of the end points by method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--output", type=Path, help="PNG file for the figure")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    found = run(given.methods, given.steps, given.rate)
    ends = {method: [distance(points[-1]) for points in trajectories] for method, trajectories in found.items()}
    for method, each in ends.items():
        tell(f"{method:12} " + "  ".join(f"{value:.3f}" for value in each) + f"  {sum(v < FRONT for v in each)} of 5")
    if given.output is not None:
        plot(found, given.output)
    return ends


if __name__ == "__main__":
    main()
