"""What a model's page on the Hub says."""

from .card import model_card

__all__ = ["model_card"]
