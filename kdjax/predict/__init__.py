"""Classifies images with a trained network.

`python -m kdjax.predict`.
"""
