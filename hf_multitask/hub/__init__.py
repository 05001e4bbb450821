"""What a model's page on the Hub says."""

from .card import Run, write_card
from .edits import UnreadableCard

__all__ = ["Run", "UnreadableCard", "write_card"]
