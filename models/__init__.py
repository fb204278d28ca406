"""CSBrain, token reducer, projection, language model, mapper, image generator, stand-ins. Never imports datasets/."""

import logging
import os

# What these libraries say while they are imported concerns optional parts that nothing here uses.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
