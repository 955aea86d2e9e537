"""From datasets and generated tasks to a resumable stream of tokenized prompts.

`sources` picks where problems come from: `generated` tasks (their generators are in `tasks`) or a `dataset`. `stream`
orders and shards them, `prompts` applies templates and tokenizes. Nothing here samples or scores.
"""
