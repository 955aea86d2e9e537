"""From an answer's text to nodes.

normalize: one spelling. tokens: the tokenizer. parse: lists, sets, relations, names. scalar: single expressions.
words: units, texts, and words that may be dropped.
"""
