"""Parts of the recipe of GRPO's loop: rewards, dynamic sampling, curriculum, schedules, drafts. Sections, their rules.

What they do is in `rewards`, `grpo.stages.collect`, `rollout.data.curriculum` and the loop itself.
"""
