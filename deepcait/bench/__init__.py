"""Benchmarks against timm: time, memory and operations, measured and counted the same way for both."""
