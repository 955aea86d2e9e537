"""The model being trained, seen from outside: loading it, its head, its experts, its weights by checkpoint name.

Knows no optimizer and no batch.
"""
