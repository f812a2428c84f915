"""The commands by name."""

COMMANDS = {
  'train': ('main', 'train a classifier, with or without a teacher'),
  'evaluate': ('evaluate', 'measure a finished run again'),
  'sweep': ('sweep', 'compare methods, settings and seeds'),
  'report': ('report', 'draw tables and figures of runs'),
  'export': ('export', 'write a student for use without kdjax'),
  'predict': ('predict', 'classify image files'),
  'convert': ('convert', "convert other programs' weights"),
  'benchmark': ('benchmark', 'measure speed and memory'),
  'completion': ('completion', 'print a script that completes commands'),
}
"""Module and purpose of each command, by name."""
