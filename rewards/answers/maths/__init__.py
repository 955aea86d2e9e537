"""Reading and comparing mathematical answers: text -> nodes -> equal or not.

equivalence: the entry point, run in worker processes. reading/: from text to nodes. comparing/: which nodes are equal.
nodes: what an answer is once read. limits: bounds checked before reading. Nothing is ever evaluated as code.
"""
