"""From an answer's text to nodes.

spelling/: one spelling. tokens: the tokenizer. words: units, texts, and words that may be dropped. notation/: single
notations. scalar: single expressions. labels: options and names. parse: lists, sets, relations and everything else.
"""
