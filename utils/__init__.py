"""Montages, device and memory, seeds, checkpoints, run records, drawing. Imports no other room."""
