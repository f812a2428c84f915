"""Exports a network in a format that needs no kdjax.

`python -m kdjax.export`. `formats` has the function that writes each format.
"""
