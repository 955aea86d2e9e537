"""Generation: problems, prompts and the engines that answer them. Knows no reward and no trainer."""
