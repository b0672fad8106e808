"""Benchmarks of several parts, and what they are made of."""
