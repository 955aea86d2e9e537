"""Measures the mathematical verifier: python -m benchmarks.verifier {labelled,properties,fuzz,generations,speed}.

grading: ours and math-verify on the same pairs. properties: constructed pairs (pairs/). sets/: public data.
fuzz: hostile answers (hostile.py). speed: pairs per second. report: markdown tables.
"""
