"""Evaluation: one sweep over all rows, metrics by task."""
