"""Many runs of one command: listed, run by an engine, what failed named, what is missing done by the same command."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from datasets.description import load_description
from stages.sweeps import flags_of, list_runs
from tests.conftest import ROOT, read_jsonl, small_store
from tests.test_command_lines import parsed
from utils.engines import ENGINES, Attempt, Resources

# A training script in small: it fails where a file of this name says so. With --meet N the first run of a folder goes
# on when N have begun, and the others fail where they begin before it has written run.json.
TRAIN = """
import argparse, os, signal, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
for flag in ("--output_dir", "--protocol", "--seed", "--pooling", "--datasets_dir", "--meet", "--nap"):
    parser.add_argument(flag)
parser.add_argument("--resume", action="store_true")
args = parser.parse_args()
folder = Path(args.output_dir)
folder.mkdir(parents=True, exist_ok=True)
print("begins", flush=True)
if Path(f"kills {args.protocol}").exists():
    os.kill(os.getpid(), signal.SIGKILL)
if Path(f"stops {args.protocol}").exists():
    sys.exit("error: the recording is damaged")
if args.meet and folder.name != "P1" and not (folder.parent / "P1/run.json").exists():
    sys.exit("error: began before the first had cached")
time.sleep(float(args.nap or 0))
(folder / "run.json").write_text("{}")
for _ in range(300):
    if not args.meet or folder.name != "P1" or len(list(folder.parent.glob("P*.log"))) >= int(args.meet):
        break
    time.sleep(0.1)
else:
    sys.exit("error: the others do not begin")
(folder / "results.json").write_text("{}")
with open("done", "a") as file:
    file.write(f"{folder.name}\\n")
"""
PEOPLE = ["P1", "P2", "P3", "P4"]
SCRIPTS = ("finetune_eeg_llm.py", "finetune_eeg_to_image.py", "finetune_eeg_to_clip.py", "baseline.py",
           "train_prior.py", "train_structure.py")  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the small training script, as the current one."""
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sweep(*flags, people=PEOPLE, command=("python", "train.py")):
    """Arguments of sweep.py."""
    protocols = ["--protocol", *(f"loso:{person}" for person in people)] if people else []
    return ["sweep.py", *protocols, "--output_dir", "runs", *map(str, flags), "--", *map(str, command)]


def done(folder):
    """Which runs came to their end, in order."""
    path = folder / "done"
    return path.read_text().split() if path.exists() else []


# ---------------------------------------------------------------- which runs there are


def test_the_plan_names_all_runs_and_makes_nothing(here, script):
    (here / "runs/pooling-a/P1_seed0").mkdir(parents=True)
    (here / "runs/pooling-a/P1_seed0/results.json").write_text("{}")
    (here / "runs/pooling-a/P1_seed0.log").write_text("$ python train.py --pooling a --protocol loso:P1 --seed 0 "
        "--output_dir runs/pooling-a/P1_seed0\nbegins\ntook 240 s\n")  # fmt: skip
    (here / "runs/pooling-a/P2_seed0").mkdir()
    (here / "runs/pooling-a/P2_seed0/results.json").write_text("{}")
    (here / "runs/pooling-a/P2_seed0.log").write_text("as before there was sweep.py\n")  # it does not say its command
    plan = script(
        *sweep("--seeds", 0, 1, "--vary", "--pooling", "a", "b", "--at_once", 2, "--plan", people=["P1", "P2"])
    )
    states = dict(re.findall(r"(finished|to do) +(?=\S+P1_seed0)(\S+)", plan.out))
    assert plan.code == 0 and states == {"finished": "runs/pooling-a/P1_seed0", "to do": "runs/pooling-b/P1_seed0"}
    assert "runs: 8, finished: 2, to do: 6; about 4 min each, 12 min in all with 2 at once" in plan.out
    assert sorted(os.listdir("runs")) == ["pooling-a"] and not done(here)


def test_every_person_of_the_store_has_a_run(here, script):
    small_store(here / "store", load_description("BCICIV2b"), ["B03", "B01", "B02"], trials=2)
    flags = sweep("--plan", "--protocol", "loso:all", "within:B01", people=[], command=("python", "train.py"))
    assert "say --datasets_dir behind --" in script(*flags).error_line
    plan = script(*flags, "--datasets_dir", "store")
    runs = re.findall(r"to do +(\S+)", plan.out)
    assert runs == ["runs/loso-B01", "runs/loso-B02", "runs/loso-B03", "runs/within-B01"]


def test_flags_values_seeds_people_and_controls_make_folders_and_commands():
    known = {"--output_dir", "--protocol", "--seed", "--augment", "--mirror", "--shuffle_labels", "--resume"}
    varied = [("augment", "mirror shift", "a/b"), ("mirror",)]
    runs = list_runs(ROOT / "x", ["python", "t.py"], known, ["loso:A 1", "published"], [3], varied, controls=True)
    names = {"loso-A-1_seed3", "published_seed3", "loso-A-1_seed3_shuffled", "published_seed3_shuffled"}
    groups = {f"augment-{a}_{m}" for a in ("mirror-shift", "a-b") for m in ("mirror", "no_mirror")}
    assert [run.name for run in runs] == list(dict.fromkeys(run.name for run in runs))
    assert {run.name for run in runs} == {f"{group}/{name}" for group in groups for name in names}
    (run,) = (run for run in runs if run.name == "augment-mirror-shift_mirror/loso-A-1_seed3_shuffled")
    flags = "--augment mirror shift --mirror --protocol".split()
    flags += ["loso:A 1", "--seed", "3", "--shuffle_labels", "--resume", "--output_dir", str(run.folder)]
    assert list(run.command) == ["python", "t.py", *flags] and run.folder == ROOT / "x" / run.name


def test_without_a_flag_that_is_on_by_default_a_run_says_no():
    known = {"--output_dir", "--cached", "--no-cached"}
    without, with_it = list_runs(ROOT, ["python", "t.py"], known, varied=[("cached",)])
    assert without.name == "no_cached" and "--no-cached" in without.command and "--cached" not in without.command
    assert with_it.name == "cached" and "--cached" in with_it.command and "--no-cached" not in with_it.command


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_is_listed_is_a_command_of_each_training_script(name, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "60")  # how wide -h is written says nothing of the flags
    known = flags_of(["python", str(ROOT / name)])
    needed = {"finetune_eeg_llm.py": ["--datasets_dir", "S"], "baseline.py": ["--model", "eegnet"]}
    needed["train_prior.py"] = ["--model_dir", "runs/atm/{run}"]
    command = ["python", str(ROOT / name), *needed.get(name, [])]
    (run,) = list_runs(tmp_path, command, known, ["within:sub-08"], [5], [("epochs", "7")])
    with monkeypatch.context() as patch:
        args = parsed([name, *run.command[2:]], patch)
    output = args.output_dir if "output_dir" in args else args.model_dir
    assert (output, args.seed, args.epochs) == (str(tmp_path / "epochs-7/sub-08_seed5"), 5, 7)
    if name == "train_prior.py":  # goes on from another sweep's run of the same name
        assert args.model_dir == "runs/atm/epochs-7/sub-08_seed5"
    else:
        assert args.protocol == "within:sub-08"
    assert getattr(args, "resume", True)


@pytest.mark.parametrize("flags, words", [
    (sweep("--vary", "--polling", "a"), "has no --polling"),
    (sweep("--vary", "pooling", "a", "a"), "pooling-a/P1 and 3 more: each run needs a name"),
    (sweep(people=[]), "say --protocol, --seeds or --vary"),
    (sweep(command=("python", "train.py", "--output_dir", "x")), "the command says --output_dir"),
    (sweep(command=("python", "trains.py")), "expected -- python SCRIPT FLAGS"),
    (sweep(command=("python", "broken.py")), "broken.py -h fails"),
    (sweep(command=("python", "other.py")), "neither --output_dir nor --model_dir"),
    (sweep("--protocol", "lose:P1"), "expected one of published, loso"),
    (sweep("--controls", command=("python", "controlled.py", "--shuffle_labels")), "leave it out of the command"),
])  # fmt: skip
def test_what_cannot_be_swept_is_one_line(here, script, flags, words):
    (here / "broken.py").write_text("import nothing_of_this_name")
    (here / "controlled.py").write_text(TRAIN.replace('"--resume"', '"--shuffle_labels"'))
    (here / "other.py").write_text("import argparse; argparse.ArgumentParser().parse_args()")
    stopped = script(*flags)
    assert stopped.code == 2 and words in stopped.error_line and not (here / "runs").exists()


# ---------------------------------------------------------------- here


def test_failures_are_listed_with_their_last_line_and_the_same_command_does_what_is_missing(here, script):
    (here / "kills loso:P2").touch()
    (here / "stops loso:P3").touch()
    failed = script(*sweep())
    assert failed.code == 2 and failed.error_line.startswith("error: 2 of 4 runs failed") and done(here) == ["P1", "P4"]
    lines = [line for line in failed.out.splitlines() if line.startswith("failed: ")]
    assert lines == ["failed: runs/P2: signal 9: begins",
                     "failed: runs/P3: exit code 1: error: the recording is damaged"]  # fmt: skip
    (here / "kills loso:P2").unlink()
    (here / "stops loso:P3").unlink()
    again = script(*sweep())
    assert again.code == 0 and "finished: 2, to do: 2" in again.out and done(here) == ["P1", "P4", "P2", "P3"]
    third = script(*sweep())
    assert third.code == 0 and "to do: 0" in third.out and len(done(here)) == 4
    with open(here / "runs/P1.log", "a") as log:
        log.write("$ 5 a month isn't much\n$ python\ntook 3 s\n")  # the script's own words
    absolute = [str(here / "runs") if word == "runs" else word for word in sweep()]
    assert "to do: 0" in script(*absolute).out
    other = script(*sweep(command=("python", "train.py", "--nap", "0")))
    assert other.code == 2 and "runs/P1 was made by another command" in other.error_line


def test_failures_are_listed_where_no_table_can_be_made_as_well(here, script):
    (here / "stops loso:P2").touch()
    damaged = TRAIN.replace("(folder / \"results.json\")", "(folder / 'decoded_test.jsonl').write_text('{'); "
                            "(folder / \"results.json\")")  # fmt: skip
    (here / "damaged.py").write_text(damaged)
    failed = script(*sweep(people=["P1", "P2"], command=("python", "damaged.py")))
    assert failed.code == 2 and "failed: runs/P2: exit code 1: error: the recording is damaged" in failed.out
    assert "evaluate.py makes no table" in failed.err and "; 1 of 2 runs failed" in failed.err


def test_a_run_without_results_has_failed(here, script):
    (here / "idle.py").write_text(TRAIN.replace('(folder / "results.json").write_text("{}")', "print('no test')"))
    stopped = script(*sweep(people=["P1"], command=("python", "idle.py")))
    assert stopped.code == 2 and "failed: runs/P1: it has left no results.json" in stopped.out


def test_the_others_begin_when_the_first_of_their_setting_has_cached_what_they_read(here, script):
    command = ("python", "train.py", "--meet", 4, "--nap", 0.3)
    swept = script(*sweep("--vary", "--pooling", "a", "b", "--at_once", 8, command=command))
    assert swept.code == 0 and sorted(done(here)) == sorted(2 * PEOPLE), swept.out


def test_an_interruption_ends_the_runs_as_well(here):
    """What a launcher has started, too."""
    (here / "launch.py").write_text("import subprocess, sys; subprocess.call([sys.executable, *sys.argv[1:]])")
    launched = ("python", "-m", "launch", "train.py")
    command = [sys.executable, str(ROOT / "sweep.py"), *sweep("--at_once", 2, command=launched)[1:], "--nap", "50"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (here / "runs/P1.log").exists() or "begins" not in (here / "runs/P1.log").read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert "the same command does what is missing" in process.communicate(timeout=20)[1] and process.returncode == 143
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert f"--output_dir {here}" not in running and "--nap 50" not in running


def test_real_folds_share_one_token_cache_and_become_one_table(demo, few, here, script):
    flags = {"datasets_dir": few, "foundation_dir": demo.csbrain, "model": "linear_probe", "epochs": 1, "cuda": -1}
    words = [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
    words += ["--cache_dir", str(here / "tokens")]
    swept = script(*sweep("--at_once", 2, people=["A01", "A02"], command=("python", ROOT / "baseline.py", *words)))
    assert swept.code == 0, swept.err
    first, second = ((here / f"runs/{person}.log").read_text() for person in ("A01", "A02"))
    assert "people encoded" in first and "people encoded" not in second and second.count("from the cache") == 3
    assert "| runs (2 folds) |" in (here / "runs/tables/results.md").read_text()
    for person in ("A01", "A02"):
        assert {row["subject"] for row in read_jsonl(here / f"runs/{person}/decoded_test.jsonl")} == {person}
        record = json.loads((here / f"runs/{person}/run.json").read_text())
        assert record["arguments"]["protocol"] == f"loso:{person}"


# ---------------------------------------------------------------- Ray, SLURM


def test_ray_runs_two_at_once_and_loses_no_run_with_a_killed_one(here, script):
    pytest.importorskip("ray")
    (here / "kills loso:P3").touch()
    command = ("python", "train.py", "--meet", 2)  # the first one ends when a second one runs
    flags = sweep("--engine", "ray", "--gpus_per_run", 0, "--at_once", 2, command=command)
    failed = script(*flags)
    assert failed.code == 2 and "failed: runs/P3: signal 9: begins" in failed.out, failed.err
    assert sorted(done(here)) == ["P1", "P2", "P4"]
    (here / "kills loso:P3").unlink()
    again = script(*flags)
    assert again.code == 0 and "finished: 3, to do: 1" in again.out and done(here)[-1] == "P3"


@pytest.mark.parametrize("engine, library", [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed_is_one_line(here, script, monkeypatch, engine, library):
    monkeypatch.setitem(sys.modules, library, None)
    stopped = script(*sweep("--engine", engine))
    assert stopped.code == 2 and "pip install -r requirements-sweep.txt" in stopped.error_line and not done(here)


def test_slurm_gets_an_array_and_puts_a_job_back_as_it_was(here, monkeypatch):
    """What submitit is told, by one that writes it down; tests/slurm has the real one."""
    said = SimpleNamespace(arrays=[], settings={})

    class Executor:
        def __init__(self, folder, max_num_timeout):
            said.folder, said.timeouts = folder, max_num_timeout

        def update_parameters(self, **settings):
            said.settings = settings

        def map_array(self, function, *columns):
            said.arrays.append((function, list(zip(*columns, strict=True))))
            return [SimpleNamespace(result=lambda job=job: function(*job)) for job in said.arrays[-1][1]]

    helpers = SimpleNamespace(DelayedSubmission=lambda *what: what)
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(SlurmExecutor=Executor, helpers=helpers))
    monkeypatch.setitem(sys.modules, "submitit.helpers", helpers)
    engine = ENGINES["slurm"](Resources(2, 3, 1.0, 7, {"partition": "gpu"}, here / "slurm"))
    jobs = [(["python", "-c", f"import os, signal; os.kill(os.getpid(), signal.SIGUSR2); print({k})"],
             str(here / f"{k}.log"), str(here)) for k in range(2)]  # fmt: skip
    assert [job.result() for job in engine.start(jobs)] == [0, 0]  # the signal of the time limit does not end a run
    assert [(here / f"{k}.log").read_text().splitlines()[1] for k in range(2)] == ["0", "1"]
    (function, given), settings = said.arrays[0], said.settings
    assert given == jobs and said.timeouts >= 100
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCONT)}
    try:
        assert function.checkpoint(*jobs[0]) == (function, *jobs[0])
        assert {signal.getsignal(number) for number in before} == {signal.SIG_IGN}  # what puts it back is not ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (settings["time"], settings["cpus_per_task"], settings["gpus_per_node"]) == (7, 3, 1)
    assert settings["array_parallelism"] == 2 and settings["additional_parameters"] == {"partition": "gpu"}


def test_a_log_keeps_every_attempt(here):
    for code in (3, 0):
        assert (
            Attempt(["python", "-c", f"import sys; print('said'); sys.exit({code})"], "run.log", ".").result() == code
        )
    lines = (here / "run.log").read_text().splitlines()
    assert [line[:2] for line in lines] == ["$ ", "sa", "$ ", "sa", "to"] and re.fullmatch(r"took \d+ s", lines[-1])
