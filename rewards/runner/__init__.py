"""Run reward functions: load by name, call, sum with weights and gates, check before training, test from a file.

`workers` is the pool of worker processes, also used by single rewards. No reward function lives here.
"""
