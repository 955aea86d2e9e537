"""Single notations.

On tokens: numerals (numbers in words), counting (combinations). To nodes: literals (numbers and times), dots (sums and
products with dots), residues (residue classes).
"""
