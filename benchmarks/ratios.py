"""Ratios of interleaved measurements, with an interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def median_ratio(ones: Sequence[float], others: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The median over pairs of turns of the ratio of two systems, and its 95 % bootstrap interval (10,000 samples)."""
    ratios = np.asarray(ones) / np.asarray(others)
    draws = np.random.default_rng(seed).integers(len(ratios), size=(10_000, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)
