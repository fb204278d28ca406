"""The same work on many files, several at a time, results in the files' order."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from tqdm import tqdm


def in_order(function: Callable, jobs: Sequence[tuple], workers: int, desc: str) -> Iterator:
    """Yield `function(*job)` for every job, in order, whichever worker is done first; results are not kept.

    One worker is this process itself.
    """
    if workers == 1:
        with tqdm(total=len(jobs), desc=desc, unit="file") as bar:
            for job in jobs:
                yield function(*job)
                bar.update()
        return
    with ProcessPoolExecutor(min(workers, len(jobs))) as pool:
        running = deque(pool.submit(function, *job) for job in jobs)
        try:
            with tqdm(total=len(jobs), desc=desc, unit="file") as bar:
                while running:
                    yield running.popleft().result()
                    bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
