"""Several processes of one run, as `accelerate launch` starts them: forks of this one, so nothing is imported anew."""

import os
import runpy
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT


def started(n: int, work: Callable[[int], None], log: Path | None = None) -> list[int]:
    """Numbers of n processes on CPUs that begin `work(rank)` together; what they say goes to the end of `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(n):
        child = os.fork()
        if child == 0:
            code = 99
            signal.alarm(300)  # two that wait for each other
            try:
                out = os.open(log or os.devnull, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.dup2(out, 1)
                os.dup2(out, 2)
                sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - to the end
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_PORT": port}
                os.environ |= {name: str(value) for name, value in names.items()}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"}
                _forget_the_one_process()
                work(rank)
                code = 0
            except SystemExit as stop:
                code = stop.code or 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 98)
        children.append(child)
    return children


def ended(children: list[int]) -> list[int]:
    """Their exit codes, −9 of a process that was killed so."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def by_forks(n: int, log: Path, script: str, *args) -> str:
    """What n processes print that run a script's command line together, and end well."""
    codes = ended(started(n, run_script(script, *args), log))
    assert codes == [0] * n, log.read_text()[-3000:]
    return log.read_text()


def run_script(name: str, *args) -> Callable[[int], None]:
    """The work of a script's command line."""

    def work(rank: int) -> None:
        sys.argv = [name, *map(str, args)]
        runpy.run_path(str(ROOT / name), run_name="__main__")

    return work


def _forget_the_one_process() -> None:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
