"""The same work on many files, several at a time, results in the files' order."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from utils.errors import UserError
from utils.progress import progress

AHEAD = 2  # jobs given out for each worker: results that wait for an earlier one take memory, and are lost in a kill


class WorkerLost(UserError):
    """The system ended a worker; what is finished is sound."""


def in_order(function: Callable, jobs: Sequence[tuple], workers: int, desc: str) -> Iterator:
    """Yield `function(*job)` for every job, in order, whichever worker is done first; results are not kept.

    One worker is this process itself. Workers end when this process does, however it ends.

    Raises WorkerLost if the system ends a worker.
    """
    if workers == 1 or len(jobs) < 2:
        with progress(total=len(jobs), desc=desc, unit="file") as bar:
            for job in jobs:
                yield function(*job)
                bar.update()
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), initializer=_end_with, initargs=(os.getpid(),)) as pool:
        waiting, running = deque(jobs), deque()
        try:
            with progress(total=len(jobs), desc=desc, unit="file") as bar:
                while waiting or running:
                    while waiting and len(running) < AHEAD * workers:
                        running.append(pool.submit(function, *waiting.popleft()))
                    yield running.popleft().result()
                    bar.update()
        except BrokenProcessPool:
            message = "a worker was ended by the system, most likely for want of memory; go on with --workers 1"
            raise WorkerLost(message) from None
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.kill()  # what they are at would take minutes, and nobody wants it now
            pool.shutdown(cancel_futures=True)
            raise


def _end_with(parent: int) -> None:
    """In a worker: leave interruptions to the parent, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.3)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
