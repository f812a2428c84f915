"""The process and the machine: devices, XLA, signals, files, terminal."""
