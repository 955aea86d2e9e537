"""Metrics that merge, the files of a run, terminal output, the run's page."""
