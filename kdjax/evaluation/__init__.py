"""Logits of a split, what is measured of them, and tables of it."""
