"""Which nodes are equal.

compare: the rules by kind of node. resolve: what is simplified first. scalars, sets: single expressions; intervals and
relations. value: exact and numerical values, computed with arithmetic's operations.
"""
