"""From an answer's text to nodes.

spelling/: one spelling. tokens: the tokenizer. words: units, texts, and words that may be dropped. notation/: single
notations. scalar: single expressions. labels: options and names. relations: conditions, cases, families. matrices:
their sums. parse: lists, sets and everything else.
"""
