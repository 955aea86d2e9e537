"""`grpo plan`: a recipe on many GPUs: which are trainers and which serve, what each holds, how long a step takes.

Nothing is measured here but the machine's memory: speeds are published peaks times stated efficiencies.
"""
