"""Runs → the tables of `evaluate.py`: scored, compared, written."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from evaluation.decoded_runs import Run, group_name, is_fold
from evaluation.statistics import (
    calibration,
    class_scores,
    confusion,
    holm,
    mcnemar,
    mean_interval,
    permutation_level,
    permutation_p,
    permuted_accuracies,
    top_k,
)
from stages.rows import Row
from stages.scores import FEW_PEOPLE, p_value, percent, score_readout

PARTS = ("window", "regions")  # of a trial that a run may read
TOP, TOP_FROM = 3, 10  # top-3, from 10 classes on
ONE_SIDED = 0.9  # share of the answers that one class may take before there is a warning

# ---------------------------------------------------------------- one line of the table


def numbers(rows: Sequence[Row], readout: str) -> dict:
    """All numbers of one read-out of decoded trials, by column."""
    score = score_readout(rows, readout)
    true, decoded = [r.true_label for r in rows], [r.readouts[readout].label for r in rows]
    n_classes = rows[0].readouts[readout].n_classes
    permuted = permuted_by(rows, readout)
    level, low, high = permutation_level(permuted)
    found = {
        "accuracy": score.accuracy, "n": score.n, "people": score.people, "low": score.low, "high": score.high,
        "simulated": any(row.simulated for row in rows), "interval_over": "trials of these people", "chance": score.chance, "p_binomial": score.p,
        "p_permuted": permutation_p(score.accuracy, permuted), "permuted": level, "permuted_low": low, "permuted_high": high,
        **class_scores(confusion(true, decoded, n_classes)),
    }  # fmt: skip
    if readout in with_probabilities(rows):
        p = np.array([r.readouts[readout].probabilities for r in rows])
        found["ece"] = calibration(np.array(true) == decoded, p[np.arange(len(p)), decoded])[0]
        if n_classes >= TOP_FROM:
            found["top3"] = top_k(true, p, TOP)
    ranks = [r.readouts[readout].rank for r in rows]
    if None not in ranks:
        found["top5"] = float(np.mean([rank <= 5 for rank in ranks]))
    if score.recording_line is not None:
        within = score.within_task
        found |= {"task": score.task.accuracy, "recording_alone": score.recording_line}
        found |= {"within_task": within.accuracy, "within_task_n": within.n} if within else {}
    return found


def with_probabilities(rows: Sequence[Row]) -> list[str]:
    """The read-outs that give a class and probabilities for every trial."""
    return [name for name in rows[0].readouts
            if all(r.readouts[name].probabilities is not None and r.readouts[name].label >= 0 for r in rows)]  # fmt: skip


def permuted_by(rows: Sequence[Row], readout: str, seed: int = 0) -> np.ndarray:
    """Accuracies of a read-out's answers when true labels change places within each recording."""
    return permuted_accuracies(
        [row.true_label for row in rows], [row.readouts[readout].label for row in rows],
        [(row.subject, row.session, row.run) for row in rows], seed=seed,
    )  # fmt: skip


def group_line(group: Sequence[Run], readout: str, controls: Sequence[Run], name: str = "") -> dict:
    """One line: a run; the mean of several seeds; or the folds of leave-one-subject-out, pooled.

    name : str, optional. Default: the group's own.
    """
    seeds = defaultdict(list)
    for run in group:
        seeds[run.seed].append(run)
    of_seed = [numbers([row for run in runs for row in run.rows], readout) for runs in seeds.values()]
    line = {"run": name or group_name(group), "readout": readout, "seeds": len(of_seed)} | of_seed[0]
    line |= {part: group[0].argument.get(part) for part in PARTS}
    if len(of_seed) > 1:
        for name in (
            "accuracy",
            "balanced_accuracy",
            "macro_f1",
            "kappa",
            "top3",
            "top5",
            "ece",
            "task",
            "within_task",
        ):
            values = [found[name] for found in of_seed if name in found]
            line |= {name: float(np.mean(values))} if values else {}
        line["sd"] = float(np.std([found["accuracy"] for found in of_seed], ddof=1))
        line |= {name: max(found[name] for found in of_seed) for name in ("p_binomial", "p_permuted")}  # the worst
        line |= dict.fromkeys(("low", "high")) | {"interval_over": f"{line['people']} people"}
    if all(map(is_fold, group)):
        people = by_person([row for run in group for row in run.rows], readout)
        interval = mean_interval([accuracy for accuracy, _ in people.values()])
        line |= {"accuracy": float(np.mean([accuracy for accuracy, _ in people.values()]))}
        line |= dict(zip(("low", "high"), interval or (None, None), strict=True))
        line["interval_over"] = "people" if interval else f"{len(people)} people"
    if controls:
        pooled = defaultdict(list)
        for control in controls:
            pooled[control.seed] += control.rows
        found = [numbers(rows, readout)["accuracy"] for rows in pooled.values()]
        permuted = np.mean([permuted_by(rows, readout, seed) for seed, rows in enumerate(pooled.values())], axis=0)
        level, low, high = permutation_level(permuted)
        control = float(np.mean(found))
        verdict = "ABOVE" if control > high + 1e-9 else "below" if control < low - 1e-9 else "at"
        line |= {
            "control": control, "control_n": len(next(iter(pooled.values()))), "controls": len(found),
            "control_level": level, "control_low": low, "control_high": high, "control_verdict": f"{verdict} its level",
        }  # fmt: skip
    return line


def linear_probe(group: Sequence[Run], runs: Sequence[Run]) -> dict:
    """The accuracy of `baseline.py --model linear_probe` on the tokens that text runs read, where it was run for all seeds."""
    found = [_linear_probe(run, runs) for run in group]
    return {} if None in found else {"linear_probe": float(np.mean(found))}


def _linear_probe(run: Run, runs: Sequence[Run]) -> float | None:
    if "token_pooling" not in run.argument or "model" in run.argument:
        return None
    found = {}
    for other in runs:
        same = [run.record.get("depends_on") == other.record.get("depends_on")]
        same += [run.argument.get(k) == other.argument.get(k) for k in ("token_pooling", "encoder", "protocol", *PARTS)]
        if other.argument.get("model") == "linear_probe" and all(same) and sorted(run.trials) == sorted(other.trials):
            found[other.seed] = float(np.mean(other.right(other.main_readout)))
    return found.get(run.seed, float(np.mean(list(found.values()))) if found else None)


def by_person(rows: Sequence[Row], readout: str) -> dict[str, tuple[float, int]]:
    """Accuracy and number of trials of each person."""
    right = defaultdict(list)
    for row in rows:
        right[row.subject].append(row.readouts[readout].label == row.true_label)
    return {person: (float(np.mean(hits)), len(hits)) for person, hits in sorted(right.items())}


def by_class(rows: Sequence[Row], readout: str) -> dict[str, tuple[float, int, int]]:
    """Share of a class's trials that were decoded as it, their number, and how many trials were decoded as it."""
    said = Counter(row.readouts[readout].label for row in rows)
    trials = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.true_label):
        trials[row.true_label, row.true_name].append(row.readouts[readout].label == row.true_label)
    return {name: (float(np.mean(hits)), len(hits), said[label]) for (label, name), hits in trials.items()}


def warnings_of(name: str, rows: Sequence[Row], readout: str) -> list[str]:
    """What a reader of the accuracy should know of the answers."""
    said, found = Counter(row.readouts[readout].label for row in rows), []
    names = {row.true_label: row.true_name for row in rows}
    label, most = said.most_common(1)[0]
    if most > ONE_SIDED * len(rows):
        answer = "no class" if label < 0 else f"{names.get(label, label)!r}"
        found.append(f"{name}, {readout}: {percent(most / len(rows))} of the answers are {answer}")
    never = [repr(names[k]) for k in sorted(names) if not said[k]]
    if never and len(rows) >= 5 * rows[0].readouts[readout].n_classes:  # with fewer, chance leaves some out
        found.append(f"{name}, {readout}: never answered: {', '.join(never)}")
    return found


def comparisons(groups: Sequence[Sequence[Run]]) -> list[dict]:
    """McNemar's test for every two runs on the same trials; p corrected by Holm within each set of trials.

    Of several seeds the first stands for all, and folds of leave-one-subject-out are put together; the first read-out of
    each run is compared.
    """
    families = defaultdict(list)
    for group in groups:
        first = min((run.seed for run in group), key=lambda seed: (len(seed), seed))  # 2 before 10
        of_seed = [run for run in group if run.seed == first]
        run = of_seed[0]
        if len(of_seed) > 1:  # folds of leave-one-subject-out, together
            run = Run(group_name(of_seed), run.place, [row for fold in of_seed for row in fold.rows], run.record)
        families[tuple(sorted(run.trials))].append(run)
    lines = []
    for family in families.values():
        tests = []
        for a, b in combinations(family, 2):
            right = [dict(zip(run.trials, run.right(run.main_readout), strict=True)) for run in (a, b)]
            order = list(right[0])
            only_a, only_b, p = mcnemar([right[0][t] for t in order], [right[1][t] for t in order])
            tests.append({"a": f"{a.name}, {a.main_readout}", "b": f"{b.name}, {b.main_readout}", "n": len(order),
                          "only_a": only_a, "only_b": only_b, "p": p})  # fmt: skip
        lines += [test | {"p_holm": p} for test, p in zip(tests, holm([t["p"] for t in tests]), strict=True)]
    return lines


# ---------------------------------------------------------------- written


def _interval(line: dict) -> str:
    if line.get("low") is None:
        return line["interval_over"]
    return f"{100 * line['low']:.1f} to {percent(line['high'])} ({line['interval_over']})"


def _accuracy(line: dict) -> str:
    return percent(line["accuracy"]) + (f" ± {100 * line['sd']:.1f}" if "sd" in line else "")


def _control(line: dict) -> str:
    if "control" not in line:
        return "not run"
    times = f"{line['controls']} × " if line["controls"] > 1 else ""
    return (f"{percent(line['control'])} ({times}{line['control_n']}), {line['control_verdict']}: "
            f"{percent(line['control_level'])}, {100 * line['control_low']:.1f} to {percent(line['control_high'])}")  # fmt: skip


def _plain(name: str, digits: int | None = None):
    """A column's text, empty without a value: a percentage, or a number with so many digits."""
    return lambda line: (
        "" if line.get(name) is None else percent(line[name]) if digits is None else f"{line[name]:.{digits}f}"
    )


def _p(name: str):
    return lambda line: p_value(line[name]).removeprefix("p = ").removeprefix("p ")


def _part(line: dict) -> str:
    window, regions = line.get("window"), line.get("regions")
    said = [f"{window[0]:g} to {window[1]:g} s"] if window else []
    return ", ".join(said + ([" + ".join(regions)] if regions else []))


# heading → text of a line
COLUMNS = {
    "run": lambda line: line["run"],
    "read-out": lambda line: line["readout"],
    "EEG": lambda line: "simulated" if line["simulated"] else "",
    "part of it": _part,
    "accuracy": _accuracy,
    "n": lambda line: (f"{line['seeds']} × " if line["seeds"] > 1 else "") + str(line["n"]),
    "people": lambda line: str(line["people"]),
    "95 % interval": _interval,
    "chance": _plain("chance"),
    "p, binomial": _p("p_binomial"),
    "p, permuted": _p("p_permuted"),
    "balanced": _plain("balanced_accuracy"),
    "macro-F1": _plain("macro_f1", 3),
    "kappa": _plain("kappa", 3),
    "top-3": _plain("top3"),
    "top-5": _plain("top5"),
    "ECE": _plain("ece", 3),
    "linear probe": _plain("linear_probe"),
    "task": _plain("task"),
    "within task (n)": lambda line: f"{percent(line['within_task'])} ({line['within_task_n']})" if "within_task" in line else "",
    "recording alone": _plain("recording_alone"),
    "shuffled-label control (n): its level": _control,
}  # fmt: skip
COMPARED = ("a", "b", "n", "only_a", "only_b", "p", "p_holm")
IN_PAPER = (
    "run",
    "read-out",
    "EEG",
    "accuracy",
    "n",
    "people",
    "95 % interval",
    "chance",
    "p, permuted",
    "balanced",
    "kappa",
)
CSV = ("run", "readout", "simulated", "window", "regions", "seeds", "accuracy", "sd", "n", "people", "low", "high", "interval_over", "chance", "p_binomial",
       "p_permuted", "permuted", "permuted_low", "permuted_high", "balanced_accuracy", "macro_f1", "kappa", "top3", "top5", "ece",
       "linear_probe", "task", "within_task", "within_task_n", "recording_alone", "control", "control_n", "controls",
       "control_level", "control_low", "control_high", "control_verdict")  # fmt: skip


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; a bar in a cell is escaped, and a line break is a blank."""
    cells = [[" ".join(str(cell).replace("|", r"\|").split()) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(heads), ["---"] * len(heads), *cells])


def results_markdown(lines: Sequence[dict]) -> str:
    """The table of results."""
    return markdown(*results_table(lines))


def results_table(lines: Sequence[dict], columns: Sequence[str] = tuple(COLUMNS)) -> tuple[list[str], list[list[str]]]:
    """Heads and cells in words; a column that is empty everywhere is left out."""
    texts = {head: [COLUMNS[head](line) for line in lines] for head in columns}
    kept = [head for head in columns if any(texts[head])]
    return kept, [[texts[head][k] for head in kept] for k in range(len(lines))]


def comparisons_table(tests: Sequence[dict]) -> tuple[tuple[str, ...], list[tuple]]:
    """Heads and cells, a line a pair of runs."""
    return ("one", "other", "n", "only one right", "only other right", "p", "p, corrected"), [
        (t["a"], t["b"], t["n"], t["only_a"], t["only_b"], _p("p")(t), _p("p_holm")(t)) for t in tests
    ]


def results_csv(lines: Sequence[dict]) -> str:
    """All numbers, unrounded."""
    return as_csv(CSV, lines)


def as_csv(columns: Sequence[str], lines: Sequence[dict]) -> str:
    """Comma-separated values with a head."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def results_tex(lines: Sequence[dict]) -> str:
    """A table for a paper (booktabs)."""
    heads, cells = results_table(lines, IN_PAPER)
    rows = [" & ".join(map(_tex, line)) + r" \\" for line in cells]
    columns = "ll" + "r" * (len(heads) - 2)
    heads = " & ".join(map(_tex, heads)) + r" \\"
    return "\n".join([r"\begin{tabular}{" + columns + "}", r"\toprule", heads, r"\midrule", *rows,
                      r"\bottomrule", r"\end{tabular}", ""])  # fmt: skip


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$",
               "<": r"$<$", "−": r"$-$"}  # fmt: skip
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


FEW = (
    f"With {FEW_PEOPLE} test people or fewer no interval over people is printed: it would cover far less than it says."
)
