"""Measurements behind every figure that README and docstrings quote: ``python -m benchmarks NAME``."""
