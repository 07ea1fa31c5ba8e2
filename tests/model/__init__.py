"""Tests of the mathematics: golden numbers, parity, invariants, and that parity can fail."""
