"""Runs side by side: tables, figures and one page.

python -m kdjax.report runs/fkd runs/rkd
"""
