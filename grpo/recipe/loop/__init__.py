"""What a recipe of GRPO's loop may add: dynamic sampling, a curriculum, schedules. Sections, and rules for them.

What they do is in `grpo.stages.collect`, `rollout.data.curriculum` and the loop itself.
"""
