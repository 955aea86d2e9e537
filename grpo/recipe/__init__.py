"""Recipes: sections and their rules, strict YAML with overrides, error messages, estimates, launching.

This file stays empty: the codec of recipes is imported when Python opens a recipe.
"""
