"""The version of kdjax."""

__version__ = '0.1.0'
