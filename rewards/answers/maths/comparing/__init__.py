"""What equals what.

compare: any two nodes. resolve: ±, chains, units. scalars: single expressions. regions/: sets, relations, families.
moments: times and residue classes. value: exact and numerical values, computed with arithmetic's operations.
"""
