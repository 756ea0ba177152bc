"""Benchmarks: speed and compression rates."""
