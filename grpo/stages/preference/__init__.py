"""Preference pairs, and the reward model trained on them. Scoring with it is in `rewards.models`."""
