"""Generation: problems, prompts and the engines that sample completions for them. Knows no reward and no trainer."""
