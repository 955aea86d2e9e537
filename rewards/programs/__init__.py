"""The code reward: test cases of the usual datasets, running a submission, comparing its results."""
