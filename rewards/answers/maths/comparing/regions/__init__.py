"""Sets of values: intervals, relations, cases and families.

sets: unions, intersections and differences on the real line. relations, solving: what a relation or system says, solved
by sympy. piecewise: functions by cases. families, lattices: values for all whole numbers k.
"""
