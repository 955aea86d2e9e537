"""Running reward functions: loading by name, calling, worker processes, weights and gates, checks before training."""
