"""The model card and the page of a diagnosis."""

from .card import Run, write_card
from .edits import UnreadableCard

__all__ = ["Run", "UnreadableCard", "write_card"]
