"""Recipes: sections and their rules, strict YAML with overrides, error messages, the record of a run."""
