"""Tests of training: formulas, resumable state, strict settings, the step's numerics."""
