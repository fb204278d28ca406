"""Where many commands run: this machine, Ray, or SLURM. An engine starts jobs; each says when it is done, and how."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import UserError, reason
from utils.paths import ROOT
from utils.script import INTERRUPTIONS

HEAD, TOOK = "$ ", "took "  # how a log's first line begins (the command), and its last one (the seconds of a success)
INSTALL = "pip install -r requirements-sweep.txt"
# SLURM says a time limit to all processes of a job; what is run under submitit must not die of it
UNSIGNALLED = ("sh", "-c", 'trap "" USR1 USR2; exec "$@"', "sh")
PAUSE = 0.2  # seconds from one look at what runs to the next
LAST = 20.0  # seconds that what a command has started may take to end behind it
REQUEUES = 100  # how often a job may reach its time limit
Job = tuple[list[str], str, str]  # command, log, folder in which it runs


@dataclass(frozen=True)
class Resources:
    """What an engine may use."""

    at_once: int | None = None  # runs at the same time; None: one here, as many as fit elsewhere
    cpus_per_run: int = 1
    gpus_per_run: float = 1.0
    time_limit: int = 240  # SLURM: minutes of a job
    slurm: dict[str, str] = field(default_factory=dict)  # further options of sbatch
    folder: Path = Path("submitit")  # SLURM: of the jobs' files, which all machines see


class Attempt:
    """A command that runs, and adds what it says to its log. Its process ends with the one that waits for it."""

    def __init__(self, command: Sequence[str], log: str, folder: str, before: Sequence[str] = ()):
        """`command`: python means the one that runs this. `before`: words that stand before it, and not in the log."""
        self.log, self.started = Path(log), time.monotonic()
        self.leads = not before  # a group of its own, which ends with it; SLURM looks for a job's in the job's
        self.log.parent.mkdir(parents=True, exist_ok=True)
        program = sys.executable if command[0] == "python" else command[0]
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(HEAD + shlex.join(command) + "\n")
            file.flush()
            self.process = subprocess.Popen(
                [*before, program, *command[1:]],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=self.leads,
            )

    def done(self) -> bool:
        return self.process.poll() is not None

    def result(self) -> int:
        """Wait for the exit code; below 0: the signal that ended it."""
        try:
            while not self.done():
                time.sleep(PAUSE)  # Ray's interruptions reach Python code alone
        except BaseException:  # this process is to end
            self.cancel()
            raise
        if self.process.returncode == 0:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(f"{TOOK}{time.monotonic() - self.started:.0f} s\n")
        return self.process.returncode

    def end(self) -> None:
        """Ask the command to end, and what it has started, as a launcher does."""
        if not self.done():
            (os.killpg if self.leads else os.kill)(self.process.pid, signal.SIGTERM)

    def cancel(self) -> None:
        self.end()
        self.process.wait()
        until = time.monotonic() + LAST
        with suppress(OSError):  # nobody of its group is left
            while time.monotonic() < until:
                os.killpg(self.process.pid, 0)
                time.sleep(PAUSE)


def carry_out(*job) -> int:
    """Run one job to its end, on whatever machine this is; its exit code."""
    return Attempt(*job).result()


class Here:
    """Processes of this machine, one after another or so many at once."""

    def __init__(self, resources: Resources):
        self.slots = resources.at_once or 1

    def start(self, jobs: Sequence[Job]) -> list[Attempt]:
        return [Attempt(*job) for job in jobs]

    def stop(self, running: Sequence[Attempt]) -> None:
        for attempt in running:
            attempt.end()  # all of them first: each may take seconds to end
        for attempt in running:
            attempt.cancel()


class OnRay:
    """Tasks of Ray: of the cluster at RAY_ADDRESS, of one that was started on this machine, or of this machine."""

    def __init__(self, resources: Resources):
        try:
            import ray
        except ImportError:
            raise UserError(f"--engine ray: Ray is not installed: {INSTALL}") from None
        self.ray, self.slots = ray, resources.at_once or sys.maxsize
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        try:
            ours = {number: signal.getsignal(number) for number in INTERRUPTIONS}
            ray.init(logging_level="ERROR", log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
            for number, handler in ours.items():  # Ray's own would end this process with a dump
                signal.signal(number, handler)
        except Exception as error:
            hint = "look at RAY_ADDRESS, or say --engine here"
            raise UserError(f"--engine ray: no cluster answers ({reason(error)}); {hint}") from error
        asked, there = {"CPU": resources.cpus_per_run, "GPU": resources.gpus_per_run}, ray.cluster_resources()
        for kind, n in asked.items():
            if n > there.get(kind, 0):
                flag = f"--{kind.lower()}s_per_run {n:g}"
                raise UserError(f"{flag}: Ray has {there.get(kind, 0):g} {kind}s; ask for fewer (0 GPUs: on CPUs)")
        needs = {"num_cpus": asked["CPU"], "num_gpus": asked["GPU"], "max_retries": 0}
        self.task = ray.remote(carry_out).options(**needs)
        self.tasks = {}  # by the future that is handed out

    def start(self, jobs: Sequence[Job]) -> list:
        tasks = [self.task.remote(*job) for job in jobs]
        futures = [task.future() for task in tasks]
        self.tasks |= dict(zip(futures, tasks, strict=True))
        return futures

    def stop(self, running: Sequence) -> None:
        tasks = [self.tasks[future] for future in running]
        for task in tasks:
            self.ray.cancel(task)  # an interruption in its worker, which ends the command
        if tasks:
            self.ray.wait(tasks, num_returns=len(tasks), timeout=10)
        self.ray.shutdown()


class Requeued:
    """A job of SLURM: at its time limit it is put back into the queue as it was; its --resume makes it go on."""

    def __call__(self, *job) -> int:
        return Attempt(*job, before=UNSIGNALLED).result()

    def checkpoint(self, *job):  # noqa: ANN201 - submitit's, which is optional
        from submitit.helpers import DelayedSubmission

        # SLURM sends them to all of a job as soon as it is asked to put it back: also to scontrol, which still asks
        for number in (signal.SIGTERM, signal.SIGCONT):
            signal.signal(number, signal.SIG_IGN)
        return DelayedSubmission(self, *job)


class OnSlurm:
    """Arrays of jobs of SLURM, by submitit; all machines see the same folders."""

    def __init__(self, resources: Resources):
        try:
            import submitit
        except ImportError:
            raise UserError(f"--engine slurm: submitit is not installed: {INSTALL}") from None
        if resources.gpus_per_run != int(resources.gpus_per_run):
            raise UserError(f"--gpus_per_run {resources.gpus_per_run:g}: SLURM shares no GPU; expected a whole number")
        self.slots = sys.maxsize  # the queue is SLURM's
        path = f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"
        settings = {"time": resources.time_limit, "cpus_per_task": resources.cpus_per_run, "setup": [path]}
        settings |= {"additional_parameters": resources.slurm, "job_name": "sweep"}
        if resources.gpus_per_run:
            settings["gpus_per_node"] = int(resources.gpus_per_run)
        if resources.at_once:
            settings["array_parallelism"] = resources.at_once
        try:
            self.executor = submitit.SlurmExecutor(resources.folder.absolute(), max_num_timeout=REQUEUES)
        except RuntimeError:
            hint = "start sweep.py where jobs are submitted, or say --engine here"
            raise UserError(f"--engine slurm: there is no srun on this machine; {hint}") from None
        self.executor.update_parameters(**settings)

    def start(self, jobs: Sequence[Job]) -> list:
        try:
            return self.executor.map_array(Requeued(), *zip(*jobs, strict=True))
        except Exception as error:
            said = " ".join(str(error).split())[-300:]
            raise UserError(f"--engine slurm: sbatch takes no job: {said}; look at --slurm and --time_limit") from error

    def stop(self, running: Sequence) -> None:
        for job in running:
            with suppress(Exception):  # it may have ended just now
                job.cancel()


# --engine: classes of `Resources`, with `slots` (how many jobs may be started at once), `start` and `stop`
ENGINES = {"here": Here, "ray": OnRay, "slurm": OnSlurm}
