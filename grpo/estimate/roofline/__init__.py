"""`grpo roofline`: the parts of a finished run's steps against the least time that this machine would need."""
