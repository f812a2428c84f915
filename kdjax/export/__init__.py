"""Exports a network in a format that needs no kdjax.

`python -m kdjax.export`. Each format is a module with `write(path, network,
card, platforms)`.
"""
