"""From graded samples to metrics: files, estimators, summaries, tables, the page, comparisons.

Imports nothing from the rest of `grpo.evaluation`.
"""
