"""Evaluation of checkpoints on tasks: `grpo eval`, `grpo regrade`, and held-out evaluation during training.

Needs an engine and rewards, never the trainer. To follow one sample from question to metric, read tasks/, work.py,
run.py, grading.py and results/.
"""
