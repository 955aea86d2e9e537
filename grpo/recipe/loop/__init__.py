"""Parts of the recipe of GRPO's loop: rewards, dynamic sampling, a curriculum, schedules. Sections, and their rules.

What they do is in `rewards`, `grpo.stages.collect`, `rollout.data.curriculum` and the loop itself.
"""
