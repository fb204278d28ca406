"""Recordings, preprocessing, the trial store and its loaders.

A regular package on purpose: scripts put the project root first on the path, so this one is found
before the library of the same name. It never imports `models/`.
"""
