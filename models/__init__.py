"""Encoder, token reducer, projection, language model and image generator. Never imports `datasets/`."""
