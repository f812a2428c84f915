"""The version of kdjax."""

__version__ = '0.2.0'
