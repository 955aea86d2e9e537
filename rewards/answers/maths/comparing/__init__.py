"""Which nodes are equal.

compare: the rules by kind of node. resolve: what is simplified first. scalars, sets, relations, piecewise, families:
the rules for these kinds; lattices: points of families. solving: what is left to sympy. value: exact and numerical
values, computed with arithmetic's operations.
"""
