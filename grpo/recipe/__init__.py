"""Recipes: typed sections, strict YAML with overrides, the registry of stages, `grpo check`, launching.

Running a stage is in `grpo.stages`. Keep this file free of imports: Python imports the codec whenever it runs a recipe.
"""
