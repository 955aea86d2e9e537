"""Tasks as data (tasks.yaml), their problems, and the prompts built from them. No engine, no grading."""
