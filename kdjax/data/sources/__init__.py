"""Data sets by name, in memory or as files that are read on demand.

A new data set is one new file here, or none. The file `name.py` defines
`load(data_dir)`, which returns a `Source`. A function of one's own is named by
its import path, or by an entry point of its package:

    [project.entry-points.'kdjax.data']
    their_digits = 'their_package.data:load'

Every other name is looked up in TensorFlow Datasets (TFDS), which is read
without TensorFlow; so a data set that TFDS knows, or that TFDS has prepared on
disk, needs no file.
"""

from kdjax.data.sources._base import Files, Source, Split
from kdjax.data.sources._registry import is_import_path, load, names

__all__ = ['Files', 'Source', 'Split', 'is_import_path', 'load', 'names']
