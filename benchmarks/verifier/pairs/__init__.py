"""Reference answers with answers that equal them, or nearly do, by construction.

pair: the Pair and Case types. writing: LaTeX for exactly known values. The other modules generate cases by kind.
"""
