"""Rewards that extract a completion's final answer and compare it with the reference answer.

accuracy: mathematical equivalence, with the rules in maths/. verdict: right, wrong or unverifiable, and why.
exact_match, multiple_choice, countdown, gym: tasks with simpler answers. Extraction itself is in `rewards.text`.
"""
