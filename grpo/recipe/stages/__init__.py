"""The recipe classes of all stages but `grpo`, which is in grpo/recipe/config.py, and `eval`."""
