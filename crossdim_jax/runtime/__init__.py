"""Processes, devices, memory, signals and compiled programs."""
