"""From an answer's text to nodes.

normalize: one spelling. tokens: the tokenizer. parse: lists, sets, relations, names. relations: conditions, cases,
families and residues. matrices: their sums. scalar: single expressions. words: units, texts, words that may be dropped.
"""
