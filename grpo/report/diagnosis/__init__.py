"""What a run's metrics say about its health: rules, their findings, and `grpo diagnose`.

One set of rules for warnings while a run trains and for the findings of a finished one. Reads rows and the recipe only;
knows no model and no trainer. A rule belongs here if a sentence, a number and a remedy follow from metrics alone.
"""
