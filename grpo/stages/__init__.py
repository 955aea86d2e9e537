"""What a recipe's `stage` runs, and how the parts of a run are built."""
