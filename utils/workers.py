"""The same work on many files, several at a time, results in the files' order."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path

from utils.errors import UserError
from utils.progress import progress
from utils.script import INTERRUPTIONS

# Forks inherit what was made before them. Python's own choice differs by version (3.14) and system; macOS cannot fork.
PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
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
    waiting, running, done = deque(enumerate(jobs)), {}, {}
    try:
        with progress(total=len(jobs), desc=desc, unit="file") as bar:
            for number in range(len(jobs)):
                while number not in done:
                    while waiting and len(running) < workers and waiting[0][0] < number + AHEAD * workers:
                        which, job = waiting.popleft()
                        with _interruptions_wait():  # they are for the parent alone, once it knows its worker
                            ours, worker = _start(function, job)
                            running[ours] = which, worker
                    for ours in wait(list(running)):
                        which, worker = running[ours]
                        try:
                            done[which] = ours.recv()
                        except (EOFError, OSError):
                            at = (getattr(part, "path", part) for part in jobs[which])
                            file = next((f"{path}: " for path in at if isinstance(path, Path)), "")
                            cause = "a worker was ended by the system, most likely for want of memory"
                            raise WorkerLost(f"{file}{cause}; go on with --workers 1") from None
                        running.pop(ours)
                        ours.close()
                        worker.join()
                result, error, where = done.pop(number)
                if error is not None:
                    raise error from (None if isinstance(error, UserError) else RuntimeError(where))
                yield result
                bar.update()
    finally:
        for ours, (_, worker) in running.items():
            worker.kill()  # what they are at would take minutes, and nobody wants it now
            worker.join()
            ours.close()


@contextmanager
def _interruptions_wait() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back, in this process and in what it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTIONS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(function: Callable, job: tuple) -> tuple[Connection, multiprocessing.Process]:
    """A worker at one job, and the pipe that its result comes through."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    worker = PROCESSES.Process(target=_work, args=(theirs, os.getpid(), function, job), daemon=True)
    worker.start()
    theirs.close()  # so that a worker's end is the end of its pipe
    return ours, worker


def _work(theirs: Connection, parent: int, function: Callable, job: tuple) -> None:
    """In a worker: leave interruptions to the parent, end when it is gone, send it the result or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTIONS)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.3)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        answer = function(*job), None, ""
    except Exception as error:
        answer = None, error, traceback.format_exc()
    theirs.send(answer)
