"""How a recipe becomes processes: starting them, ending them by signal, and the codec that makes a recipe a program.

This file imports nothing: the codec is imported when Python opens a recipe.
"""
