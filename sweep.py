"""Many runs of one training script: protocols × people × seeds × flags. Runs what is missing, then makes one table.

    python sweep.py --protocol loso:all --seeds 0 1 2 --output_dir pth_downtasks/loso -- \
        python finetune_eeg_llm.py --datasets_dir data/BCICIV2a/processed_lmdb
    python sweep.py … --vary --token_pooling region hemisphere -- …     # a folder a value; several flags: all pairs
    python sweep.py … --plan -- …                                       # say what is to do, and stop
    python sweep.py … --at_once 2 -- …                                  # here, two runs at once
    python sweep.py … --engine ray --gpus_per_run 0.5 -- …              # Ray: this machine or a cluster
    python sweep.py … --engine slurm --time_limit 240 --slurm partition=gpu -- …
    python sweep.py --protocol within:all --output_dir RUNS/prior -- python train_prior.py --model_dir RUNS/atm/{run}

Behind -- stands the command of any training script or of baseline.py, without its output folder. A run goes to
OUTPUT_DIR/FLAG-VALUE/PERSON_seedN, what it says to PERSON_seedN.log beside it; parts that are not asked for are left
out. It is finished when its results.json is there. The first run of each value begins alone and caches tokens and
targets for the others. Then evaluate.py makes OUTPUT_DIR/tables of the finished runs. Failed runs are listed last; the
same command does what is missing, and goes on with --resume where the script has that.
"""

import argparse
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from datasets.splits import check_protocol
from utils import flags
from utils.engines import ENGINES, Resources
from utils.errors import UserError
from utils.paths import ROOT, default
from utils.script import run_script, start_script

ALL = "all"  # in the place of a person: every person of the store


def option(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text}: expected NAME=VALUE, as in partition=gpu")
    return name.lstrip("-"), value


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("command", nargs="+", help="behind --: python SCRIPT FLAGS …; {run} in it becomes the run's name")
    add("--output_dir", default=default("pth_downtasks/sweep"), help="folder of all runs")
    add("--protocol", nargs="+", type=flags.checked(check_protocol), default=[],
        help="who trains and tests, one or several; loso:all: every person of the command's --datasets_dir")
    add("--seeds", nargs="+", type=flags.at_least(0), default=[], help="a run for each (default: the script's own)")
    add("--vary", nargs="+", action="append", metavar="FLAG VALUE", default=[],
        help="a flag of the script and its values; of a flag without a value: without and with it. Again for another "
        "flag; a value of several words stands in quotes")
    add("--controls", action="store_true", help="each run a second time with --shuffle_labels: its control")
    add("--plan", action="store_true", help="say what is to do and about how long, and stop")
    add("--table", action=argparse.BooleanOptionalAction, default=True, help="make OUTPUT_DIR/tables at the end")
    engine = parser.add_argument_group("engine").add_argument
    engine("--engine", choices=list(ENGINES), default="here",
        help="here: processes of this machine; ray: Ray's; slurm: jobs (both: pip install -r requirements-sweep.txt)")
    engine("--at_once", type=flags.at_least(1),
        help="runs at the same time (default: here 1; ray and slurm as many as there is room for)")
    engine("--cpus_per_run", type=flags.at_least(1), default=1, help="ray, slurm: CPU cores of a run")
    engine("--gpus_per_run", type=flags.number, default=1.0,
        help="ray, slurm: GPUs of a run; 0: none; of Ray also a part, as 0.5")
    engine("--time_limit", type=flags.at_least(1), default=240,
        help="slurm: minutes of a job; at its limit it is put back and goes on")
    engine("--slurm", nargs="+", type=option, metavar="NAME=VALUE", default=[], help="slurm: further options of sbatch")
    # fmt: on
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    for place in range(1, end):  # --vary --FLAG and --vary FLAG are the same; argparse knows the second
        if words[place - 1] == "--vary":
            words[place] = words[place].lstrip("-")
    return parser.parse_args(words)


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

from datasets.store import open_store
from stages.sweeps import check_commands, flags_of, list_runs, minutes_of, run_all


def with_people(protocols: list[str], command: list[str]) -> list[str]:
    """Protocols with every person of the command's store in the place of `ALL`."""
    if not any(protocol.endswith(f":{ALL}") for protocol in protocols):
        return protocols
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--datasets_dir")
    store = parser.parse_known_args(command)[0].datasets_dir
    if store is None:
        raise UserError(f"--protocol {' '.join(protocols)}: say --datasets_dir behind --; it knows who the people are")
    people = sorted({trial.subject for trial in open_store(store).trials})
    whole = []
    for protocol in protocols:
        kind, _, person = protocol.partition(":")
        whole += [f"{kind}:{one}" for one in people] if person == ALL else [protocol]
    return whole


def as_time(minutes: float) -> str:
    if minutes < 2:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def main(args: argparse.Namespace) -> None:
    folder = Path(args.output_dir)
    protocols = with_people(args.protocol, args.command)
    varied, known = args.vary, flags_of(args.command)
    runs = list_runs(folder, args.command, known, protocols, args.seeds, varied, args.controls)
    check_commands(runs)

    def time_left() -> str:
        """About how long what is missing takes, in words."""
        each, n, slots = minutes_of(runs), sum(not run.finished for run in runs), args.at_once or 1
        if not n or each is None:
            return "; how long they take is known when the first one is finished" if n else ""
        if args.engine != "here" and args.at_once is None:
            return f"; about {as_time(each)} each, as many at once as there is room for"
        how = f"with {slots} at once" if slots > 1 else "one after another"
        return f"; about {as_time(each)} each, {as_time(each * -(-n // slots))} in all {how}"

    # ------------------------------------------------------------ what is to do
    missing = [run for run in runs if not run.finished]
    for run in runs:
        state = "finished" if run.finished else "begun" if run.has_begun else "to do"
        print(f"  {state:9} {run.folder}")
    print(f"runs: {len(runs)}, finished: {len(runs) - len(missing)}, to do: {len(missing)}{time_left()}", flush=True)
    if args.plan:
        return

    # ------------------------------------------------------------ what is missing
    failed = {}
    if missing:
        asked = args.at_once, args.cpus_per_run, args.gpus_per_run, args.time_limit, dict(args.slurm)
        engine = ENGINES[args.engine](Resources(*asked, folder / "slurm"))
        with closing(run_all(runs, engine, Path.cwd())) as ended:
            for number, (run, failure) in enumerate(ended, 1):
                state = "failed" if failure else "finished"
                print(f"{number} of {len(missing)}: {run.name} {state}{time_left()}", flush=True)
                if failure:
                    failed[run] = failure

    # ------------------------------------------------------------ one table; failures last
    wrong = []
    decoded = [str(run.folder) for run in runs if run.finished and (run.folder / "decoded_test.jsonl").exists()]
    if args.table and decoded:
        evaluate = [sys.executable, str(ROOT / "evaluate.py"), *decoded, "--output_dir", str(folder / "tables")]
        if subprocess.run(evaluate).returncode:
            wrong.append(f"evaluate.py makes no table of the runs in {folder}; what it says stands above")
    for run, failure in failed.items():
        print(f"failed: {run.folder}: {failure}")
    if failed:
        hint = "the logs beside them say more; the same command does what is missing"
        wrong.append(f"{len(failed)} of {len(runs)} runs failed; {hint}")
    if wrong:
        raise UserError("; ".join(wrong))


if __name__ == "__main__":
    locks = [] if args.plan else [Path(args.output_dir) / ".sweep.lock"]
    run_script(lambda: main(args), locks, "finished runs are kept; the same command does what is missing")
