"""Knows nothing of EEG: how a script begins and ends, errors, files, checkpoints, device, seeds, workers, download,
archives, flags.
"""

import sys

try:
    import fcntl  # noqa: F401 - locks and limits, which everything here reads and writes with, need both
    import resource  # noqa: F401
except ImportError:
    print("error: Linux or macOS is needed (on Windows: WSL 2)", file=sys.stderr)
    sys.exit(2)
