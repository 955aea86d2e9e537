"""What all three packages need and none is about: help with misspelt names, functions loaded by reference, HTTP.

Standard library and httpx only. `rewards` and `grpo` import it, it imports neither.
"""
