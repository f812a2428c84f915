"""Networks in Flax, and one forward pass with named features.

Models know nothing of distillation. A new one is one new file here that lists
it in `MODELS`; or it is anywhere that Python can import it from, by its import
path.
"""

from kdjax.models.registry import build, fold, names, rematerialize

__all__ = ['build', 'fold', 'names', 'rematerialize']
