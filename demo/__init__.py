"""The embedded default: simulated recordings, drawings, tiny models. Only prepare_demo.py, train_demo_images.py, tests
and benchmarks import it.
"""
