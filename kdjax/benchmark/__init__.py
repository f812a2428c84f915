"""Speed and memory of real runs, optionally beside the same in PyTorch.

python -m kdjax.benchmark --config=configs/fkd.py
"""
