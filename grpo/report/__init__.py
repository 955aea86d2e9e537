"""Metrics that merge, a run's files, terminal output and page, and evaluation progress.

Knows no model and no trainer: it receives numbers, scored groups and rows.
"""
