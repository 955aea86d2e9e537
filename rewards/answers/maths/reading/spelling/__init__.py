"""One spelling for every answer: text in, text out, in linear time.

escapes: doubled backslashes, control characters, HTML. numerals: ordinals, spaces between thousands. normalize: all
other variants of LaTeX, Unicode and Markdown.
"""
