"""Per-task gradients of the shared parameters, and their combination into one update."""

from .base import Aggregator, GramianAggregator, VectorAggregator
from .blocks import Blocks, Products
from .combining import Outcome, combine
from .registry import AGGREGATORS, as_aggregator, build_aggregator
from .splitting import NoRowAxisError, RowSplit, Segment
from .task_pass import collect_task

__all__ = [
    "AGGREGATORS",
    "Aggregator",
    "Blocks",
    "GramianAggregator",
    "NoRowAxisError",
    "Outcome",
    "Products",
    "RowSplit",
    "Segment",
    "VectorAggregator",
    "as_aggregator",
    "build_aggregator",
    "collect_task",
    "combine",
]
