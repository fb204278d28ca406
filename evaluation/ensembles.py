"""Several runs on the same trials → the rows of their mean: `evaluate.py --ensemble NAME RUN…`."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets.trials import PART
from evaluation.decoded_runs import Run, read_run, settings_but_for
from stages.rows import Row, mean_of, write_rows
from utils.errors import UserError
from utils.files import read_json, write_json


def ensemble(runs: Sequence[Run]) -> list[Row]:
    """The first run's rows with the mean of all runs' probabilities: see `stages.rows.mean_of`.

    Raises UserError where the runs are of other trials, controls among others, or have no read-out in common.
    """
    first = runs[0]
    if len(runs) < 2:
        raise UserError(f"--ensemble: only {first.name} was tested under --protocol {first.protocol}; name two or more")
    of_runs = []
    for run in runs:
        rows = dict(zip(run.trials, run.rows, strict=True))
        if set(rows) != set(first.trials):
            raise UserError(f"--ensemble: {run.name} was tested on other trials, or labels, than {first.name}")
        of_runs.append([replace(rows[trial], uses=run.uses) for trial in first.trials])  # old rows do not say it
    return mean_of(of_runs)


def write_ensembles(runs: Sequence[Run], place: Path, suffix: str) -> list[Run]:
    """Write the rows and the record of an ensemble into a folder; of several folds, PLACE-PERSON for each.

    suffix : str. What stands behind the folder's name of an ensemble of controls.
    Raises UserError as `ensemble`, or where a folder holds something else.
    """
    folds, made = defaultdict(list), []
    for run in runs:
        folds[run.protocol, run.is_control].append(run)
    for (protocol, is_control), members in folds.items():
        if is_control and len({tuple(sorted(run.trials)) for run in members}) > 1:
            print("notice: no ensemble of these controls: each --seed has permuted their labels otherwise")
            continue
        person = "-" + protocol.partition(":")[2].replace("/", "-") if len({p for p, _ in folds}) > 1 else ""
        folder = place.with_name(place.name + person + (suffix if is_control else ""))
        is_one = (folder / "run.json").is_file() and "ensemble" in read_json(folder / "run.json")
        if folder.exists() and not is_one and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"--ensemble {place}: {folder} holds something else; choose another name")
        rows = ensemble(members)
        if len(used := dict.fromkeys(run.uses for run in members)) > 1:
            print(f"notice: {folder.name} is of runs that used other things of the test person ({', '.join(used)}); "
                  f"its rows say {rows[0].uses}")  # fmt: skip
        write_rows(rows, folder / "decoded_test.jsonl")
        write_json(_record(members), folder / "run.json")
        made.append(read_run(folder))
    return made


def _record(members: Sequence[Run]) -> dict:
    """What run.json says of an ensemble: what all of its runs have in common, and which they are."""
    first = members[0]
    kept = ("downstream_dataset", "datasets_dir", "protocol", "shuffle_labels", *PART)
    arguments = {name: first.argument[name] for name in kept if name in first.argument}
    differ = [name for name in PART if any(run.argument.get(name) != first.argument.get(name) for run in members)]
    arguments = {name: value for name, value in arguments.items() if name not in differ}
    same = all(run.depends_on == first.depends_on for run in members)
    settings = sorted({settings_but_for(run, "model_dir", "output_dir") for run in members if "fixed" in run.record})
    record = {"arguments": arguments, "fixed": {"protocol": first.protocol, "ensemble": [len(members), *settings]}}
    record |= {"depends_on": first.depends_on if same else {"store": first.depends_on.get("store")}}
    record |= {"ensemble": [str(run.place) for run in members]}
    return record | ({"dataset": first.record["dataset"]} if "dataset" in first.record else {})
