"""Proof of the mathematical verifier: python -m benchmarks.verifier {labelled,properties,fuzz,generations,speed}."""
