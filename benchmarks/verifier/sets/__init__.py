"""Public data the verifier is measured on, with manual reviews of every disagreement.

labelled: labelled pairs and rulings.jsonl. generations: published completions and generations_reviewed.jsonl.
"""
