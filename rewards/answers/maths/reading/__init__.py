"""From an answer's text to nodes.

normalize: one spelling, with numerals. tokens: the tokenizer. parse: lists, sets, relations, names. scalar: single
expressions. labels: options' letters and quantities' names. words: units, texts, and words that may be dropped.
"""
