"""Data sets by name, in memory or as files that are read on demand.

A new data set is one new file here, or none. The file `name.py` defines
`load(data_dir)`, which returns a `Source`. Every other name is looked up in
TensorFlow Datasets (TFDS), which is read without TensorFlow; so a data set that
TFDS knows, or that TFDS has prepared on disk, needs no file.
"""

from kdjax.data.sources._base import Files, Source, Split
from kdjax.data.sources._registry import load, names

__all__ = ['Files', 'Source', 'Split', 'load', 'names']
