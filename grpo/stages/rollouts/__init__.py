"""Scored rollouts for the trainer: one after the other with the updates (lockstep), or ahead of them (ahead).

What is taken, sampled and scored within a rollout of the lockstep is in grpo/stages/collect.py.
"""
