"""Many runs that share a teacher and a data set, in one process."""

from kdjax.sweep.plan import comparison, default, stage, tuning

__all__ = ['comparison', 'default', 'stage', 'tuning']
