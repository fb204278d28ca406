"""Knows nothing of EEG: how a script begins and ends, errors, files, checkpoints, device, seeds, workers, download,
archives, flags.
"""
