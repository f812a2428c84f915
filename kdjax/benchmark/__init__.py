"""Speed and memory of real runs, optionally beside the same in PyTorch.

python -m kdjax.benchmark --config=configs/fkd.py

Or bounds of both on accelerators that are not there.

python -m kdjax.benchmark --config=configs/fkd.py --aot=h100
"""
