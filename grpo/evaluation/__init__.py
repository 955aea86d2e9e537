"""Evaluation of checkpoints on tasks: `grpo eval`, `grpo regrade`, and what a training run asks held-out problems.

Needs an engine and rewards, never the trainer. One sample can be followed from question to figure in this order:
tasks.py, prompts.py, run.py, grading.py, samples.py, summary.py (with estimators.py), results.py.
"""
