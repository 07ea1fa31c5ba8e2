"""Ours against peers: what models cost, counted the same way for all."""
