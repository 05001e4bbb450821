"""Teachers: single-task models whose outputs a shared model learns beside the labels."""

from .teacher import Given
from .teachers import Teachers

__all__ = ["Given", "Teachers"]
