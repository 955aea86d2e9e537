"""The code reward. code: the reward. cases: a problem's tests. datasets: tests from public sets' columns.

compare: values and output against the expected ones. results: why a test failed. sandbox/: running the programs.
"""
