"""Random loss weighting (RLW)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ._scalarized import Scalarized

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer


class Random(Scalarized):
    r"""Weights :math:`w = \mathrm{softmax}(z)` of numbers :math:`z_t \sim N(0, 1)` that are sampled in every step.

    Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning (TMLR 2022), algorithm 2,
    https://arxiv.org/abs/2111.10603. It is a baseline for the other methods.

    Weights do not depend on the losses; they are a function of the seed and the number of the step.

    .. note:: The numbers are sampled for the tasks in the step, so that weights always sum to 1.

    Args:
        exact: has no effect.
    """

    remembered = ("drawn",)

    def reset(self) -> None:
        """See :class:`Balancer`."""
        self.drawn = 0

    def scalarizer(self, tasks_P: torch.Tensor) -> Scalarizer:  # noqa: ARG002
        """See :class:`Scalarized`."""
        from torchjd.scalarization import Random as Reference

        return Reference()

    def weights(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> torch.Tensor:
        """See :class:`Balancer`."""
        with torch.random.fork_rng(devices=[]):  # torchjd uses the default generator of torch
            torch.default_generator.manual_seed((self.seed * 1_000_003 + self.drawn) % 2**63)
            return super().weights(losses_K, present_K)

    def on_step(self, losses_K: torch.Tensor, present_K: torch.Tensor) -> None:  # noqa: ARG002
        """See :class:`Balancer`."""
        self.drawn += 1
