"""The process and the machine: devices, XLA, signals, locks, files, the terminal."""
