"""Runs → the tables of `evaluate.py`: scored, compared, written."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

import numpy as np

from datasets.alignment import USES
from datasets.recording import origin
from datasets.trials import PART
from evaluation import statistics
from evaluation.decoded_runs import USED, Run, group_name, is_fold
from stages.rows import Row, with_probabilities
from stages.scores import FEW_PEOPLE, p_value, percent, score_readout

PARTS = ("window", "regions")  # of a trial that a run may read
TOP, TOP_FROM = 3, 10  # top-3, from 10 classes on
# columns of which a line of several seeds gives the mean
AVERAGED = "accuracy balanced_accuracy macro_f1 kappa top3 top5 ece task within_task".split()
ONE_SIDED = 0.9  # share of the answers that one class may take before there is a warning

# ---------------------------------------------------------------- one line of the table


def numbers(rows: Sequence[Row], readout: str) -> dict:
    """All numbers of one read-out of decoded trials, by column."""
    score = score_readout(rows, readout)
    true, decoded = [row.true_label for row in rows], [row.readouts[readout].label for row in rows]
    n_classes, ranks = rows[0].readouts[readout].n_classes, [row.readouts[readout].rank for row in rows]
    permuted = permuted_by(rows, readout)
    line = {name: getattr(score, name) for name in ("accuracy", "n", "people", "low", "high", "chance")}
    line |= {"interval_over": "trials of these people", "simulated": any(row.simulated for row in rows)}
    line |= {"p_binomial": score.p, "p_permuted": statistics.permutation_p(score.accuracy, permuted)}
    line |= _level("permuted", "permuted", permuted)
    place = {label: k for k, label in enumerate(sorted({*true, *decoded} - {-1}))}  # of those classes that occur
    counts = statistics.confusion([place[k] for k in true], [place.get(k, -1) for k in decoded], len(place))
    line |= statistics.class_scores(counts)
    if readout in with_probabilities(rows):
        p = np.array([row.readouts[readout].probabilities for row in rows])
        line["ece"] = statistics.calibration(np.array(true) == decoded, p[np.arange(len(p)), decoded])[0]
        if n_classes >= TOP_FROM:
            line["top3"] = statistics.top_k(true, p, TOP)
    if None not in ranks:
        line["top5"] = float(np.mean([rank <= 5 for rank in ranks]))
    if score.recording_line is not None:
        line |= {"task": score.task.accuracy, "recording_alone": score.recording_line}
        if within := score.within_task:
            line |= {"within_task": within.accuracy, "within_task_n": within.n}
    return line


def permuted_by(rows: Sequence[Row], readout: str, seed: int = 0) -> np.ndarray:
    """Accuracies of a read-out's answers when true labels change places within each recording."""
    true, decoded = [row.true_label for row in rows], [row.readouts[readout].label for row in rows]
    return statistics.permuted_accuracies(true, decoded, [origin(row)[:3] for row in rows], seed=seed)


def _level(mean: str, ends: str, permuted: np.ndarray) -> dict[str, float]:
    """Mean of permuted accuracies and the middle 95 % of them, under the names of a line's columns."""
    return dict(zip((mean, f"{ends}_low", f"{ends}_high"), statistics.permutation_level(permuted), strict=True))


def group_line(group: Sequence[Run], readout: str, controls: Sequence[Run], name: str = "") -> dict:
    """One line: a run; the mean of several seeds; or the folds of leave-one-subject-out, pooled.

    name : str, optional. Default: the group's own.
    """
    seeds = defaultdict(list)
    for run in group:
        seeds[run.seed] += run.rows
    of_seed = [numbers(rows, readout) for rows in seeds.values()]
    line = {"run": name or group_name(group), "readout": readout, "seeds": len(of_seed)} | of_seed[0]
    line |= {part: group[0].argument.get(part) for part in PARTS} | {"uses": group[0].uses}
    line["left_out"] = max(run.left_out("test") for run in group)
    if notes := encoder_notes(group):
        line["encoder"] = notes
    if len(of_seed) > 1:
        for column in AVERAGED:
            values = [one[column] for one in of_seed if column in one]
            line |= {column: float(np.mean(values))} if values else {}
        line |= {column: max(one[column] for one in of_seed) for column in ("p_binomial", "p_permuted")}  # the worst
        line["sd"] = float(np.std([one["accuracy"] for one in of_seed], ddof=1))
        line |= {"low": None, "high": None, "interval_over": f"{line['people']} people"}
    if all(map(is_fold, group)):
        people = by_person([row for run in group for row in run.rows], readout)
        accuracies = [accuracy for accuracy, _ in people.values()]
        interval = statistics.mean_interval(accuracies)
        line["accuracy"] = float(np.mean(accuracies))
        line["low"], line["high"] = interval or (None, None)
        line["interval_over"] = "people" if interval else f"{len(people)} people"
    return line | (_control_columns(controls, readout) if controls else {})


def encoder_notes(group: Sequence[Run]) -> str:
    """What the encoders' checkpoints of a group lacked, in words."""
    return "; ".join(dict.fromkeys(run.encoder_note for run in group if run.encoder_note))


def _control_columns(controls: Sequence[Run], readout: str) -> dict:
    """What a line says of its shuffled-label controls: their mean accuracy, its level, and where it stands to that."""
    seeds = defaultdict(list)
    for control in controls:
        seeds[control.seed] += control.rows
    pooled = list(seeds.values())
    accuracy = float(np.mean([numbers(rows, readout)["accuracy"] for rows in pooled]))
    permuted = np.mean([permuted_by(rows, readout, seed) for seed, rows in enumerate(pooled)], axis=0)
    line = {"control": accuracy, "control_n": len(pooled[0]), "controls": len(pooled)}
    line |= _level("control_level", "control", permuted)
    above, below = accuracy > line["control_high"] + 1e-9, accuracy < line["control_low"] - 1e-9
    return line | {"control_verdict": f"{'ABOVE' if above else 'below' if below else 'at'} its level"}


def linear_probe(group: Sequence[Run], runs: Sequence[Run]) -> dict:
    """The accuracy of `baseline.py --model linear_probe` on the tokens that text runs read, if all seeds have one."""
    accuracies = [_linear_probe(run, runs) for run in group]
    return {} if None in accuracies else {"linear_probe": float(np.mean(accuracies))}


def _linear_probe(run: Run, runs: Sequence[Run]) -> float | None:
    if "token_pooling" not in run.argument or "model" in run.argument:
        return None

    def reads(one: Run) -> list:
        """What its tokens are made from, how they are asked for, and of which trials they are."""
        settings = [one.argument.get(k) for k in ("token_pooling", "encoder", "protocol", *PART)]
        return [one.uses, one.record.get("depends_on"), settings, sorted(one.trials)]

    probes = [other for other in runs if other.argument.get("model") == "linear_probe" and reads(other) == reads(run)]
    of_seed = {probe.seed: float(np.mean(probe.right(probe.main_readout))) for probe in probes}
    return of_seed.get(run.seed, float(np.mean(list(of_seed.values()))) if of_seed else None)


def by_person(rows: Sequence[Row], readout: str) -> dict[str, tuple[float, int]]:
    """Accuracy and number of trials of each person."""
    right = defaultdict(list)
    for row in rows:
        right[row.subject].append(row.readouts[readout].label == row.true_label)
    return {person: (float(np.mean(hits)), len(hits)) for person, hits in sorted(right.items())}


def by_class(rows: Sequence[Row], readout: str) -> dict[str, tuple[float, int, int]]:
    """Share of a class's trials that were decoded as it, their number, and how many trials were decoded as it."""
    answers = Counter(row.readouts[readout].label for row in rows)
    right = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.true_label):
        right[row.true_label, row.true_name].append(row.readouts[readout].label == row.true_label)
    return {name: (float(np.mean(hits)), len(hits), answers[label]) for (label, name), hits in right.items()}


def warnings_of(name: str, rows: Sequence[Row], readout: str) -> list[str]:
    """What a reader of the accuracy should know of the answers."""
    answers, warnings = Counter(row.readouts[readout].label for row in rows), []
    names = {row.true_label: row.true_name for row in rows}
    label, most = answers.most_common(1)[0]
    if most > ONE_SIDED * len(rows):
        answer = "no class" if label < 0 else f"{names.get(label, label)!r}"
        warnings.append(f"{name}, {readout}: {percent(most / len(rows))} of the answers are {answer}")
    never = [repr(names[k]) for k in sorted(names) if not answers[k]]
    if never and len(rows) >= 5 * rows[0].readouts[readout].n_classes:  # with fewer, chance leaves some out
        warnings.append(f"{name}, {readout}: never answered: {', '.join(never)}")
    return warnings


def comparisons(groups: Sequence[Sequence[Run]]) -> list[dict]:
    """McNemar's test for every two runs on the same trials; p corrected by Holm.

    Of several seeds the first stands for all, folds of leave-one-subject-out are put together, and the first read-out
    of each run is compared; a language model's read-outs also with the class head beside it, and all of them with the
    best baseline of the same condition. Corrected together is what used the same of the test person, on the same
    trials, and apart from it what compares two conditions.
    """
    same_trials = defaultdict(list)
    for group in groups:
        first = min((run.seed for run in group), key=lambda seed: (len(seed), seed))  # 2 before 10
        of_seed = [run for run in group if run.seed == first]
        run = of_seed[0]
        if len(of_seed) > 1:  # folds of leave-one-subject-out, together
            run = Run(group_name(of_seed), run.place, [row for fold in of_seed for row in fold.rows], run.record)
        same_trials[tuple(sorted(run.trials))].append(run)
    lines = []
    for runs in same_trials.values():
        pairs, together = list(combinations([(run, run.main_readout) for run in runs], 2)), defaultdict(list)
        for run in runs:
            names = list(run.rows[0].readouts)
            if "head" in names[1:]:
                pairs += [((run, name), (run, "head")) for name in names if name != "head"]
                if baseline := _best_baseline(runs, run.uses):  # the first read-out is among all pairs
                    pairs += [((run, name), (baseline, baseline.main_readout)) for name in names[1:]]
        for a, b in pairs:
            together[a[0].uses if a[0].uses == b[0].uses else ""].append(_mcnemar(a, b))
        for tests in together.values():
            p_holm = statistics.holm([test["p"] for test in tests])
            lines += [test | {"p_holm": p} for test, p in zip(tests, p_holm, strict=True)]
    return lines


def _best_baseline(runs: Sequence[Run], uses: str) -> Run | None:
    """The run of `baseline.py` that is right most often of those that used this of the test person."""
    baselines = [run for run in runs if run.argument.get("model") and run.uses == uses]
    return max(baselines, key=lambda run: sum(run.right(run.main_readout)), default=None)


def _mcnemar(a: tuple[Run, str], b: tuple[Run, str]) -> dict:
    """The line of two runs' read-outs on the same trials, which may stand in another order."""
    of_a, of_b = (dict(zip(run.trials, run.right(readout), strict=True)) for run, readout in (a, b))
    counts = statistics.mcnemar(list(of_a.values()), [of_b[trial] for trial in of_a])
    differ = a[0].uses != b[0].uses
    named = [f"{run.name}, {readout}" + (f" ({run.uses})" if differ else "") for run, readout in (a, b)]
    names = {"a": named[0], "b": named[1], "n": len(of_a)}
    return names | dict(zip(("only_a", "only_b", "p"), counts, strict=True))


# ---------------------------------------------------------------- written


def _interval(line: dict) -> str:
    if line.get("low") is None:
        return line["interval_over"]
    return f"{100 * line['low']:.1f} to {percent(line['high'])} ({line['interval_over']})"


def _control(line: dict) -> str:
    if "control" not in line:
        return "not run"
    n = (f"{line['controls']} × " if line["controls"] > 1 else "") + str(line["control_n"])
    level = f"{percent(line['control_level'])}, {100 * line['control_low']:.1f} to {percent(line['control_high'])}"
    return f"{percent(line['control'])} ({n}), {line['control_verdict']}: {level}"


def _plain(name: str, write: Callable = percent) -> Callable[[dict], str]:
    """The text of a column; empty without a value."""
    return lambda line: "" if line.get(name) is None else write(line[name])


def _p(p: float) -> str:
    return p_value(p).removeprefix("p = ").removeprefix("p ")


def _within_task(line: dict) -> str:
    return f"{percent(line['within_task'])} ({line['within_task_n']})" if "within_task" in line else ""


def _part(line: dict) -> str:
    window, regions = line.get("window"), line.get("regions")
    parts = [f"{window[0]:g} to {window[1]:g} s" if window else "", " + ".join(regions or ())]
    return ", ".join(filter(None, parts))


# heading → text of a line
COLUMNS = {
    "run": lambda line: line["run"],
    "read-out": lambda line: line["readout"],
    "EEG": lambda line: "simulated" if line["simulated"] else "",
    "part of it": _part,
    USED: lambda line: line.get("uses", ""),
    "accuracy": lambda line: percent(line["accuracy"]) + (f" ± {100 * line['sd']:.1f}" if "sd" in line else ""),
    "left out": lambda line: f"{line['left_out']} test trials" if line.get("left_out") else "",
    "n": lambda line: (f"{line['seeds']} × " if line["seeds"] > 1 else "") + str(line["n"]),
    "people": lambda line: str(line["people"]),
    "95 % interval": _interval,
    "chance": _plain("chance"),
    "p, binomial": _plain("p_binomial", _p),
    "p, permuted": _plain("p_permuted", _p),
    "balanced": _plain("balanced_accuracy"),
    "macro-F1": _plain("macro_f1", "{:.3f}".format),
    "kappa": _plain("kappa", "{:.3f}".format),
    "top-3": _plain("top3"),
    "top-5": _plain("top5"),
    "ECE": _plain("ece", "{:.3f}".format),
    "linear probe": _plain("linear_probe"),
    "task": _plain("task"),
    "within task (n)": _within_task,
    "recording alone": _plain("recording_alone"),
    "shuffled-label control (n): its level": _control,
    "encoder": lambda line: line.get("encoder", ""),
}
COMPARED = ("a", "b", "n", "only_a", "only_b", "p", "p_holm")
IN_PAPER = ("run", "read-out", "EEG", USED, "accuracy", "n", "people", "95 % interval", "chance", "p, permuted")
IN_PAPER += ("balanced", "kappa", "encoder")
CSV = """
    run readout simulated window regions uses seeds accuracy sd n people low high interval_over chance p_binomial
    p_permuted permuted permuted_low permuted_high balanced_accuracy macro_f1 kappa top3 top5 ece
    linear_probe task within_task within_task_n recording_alone
    control control_n controls control_level control_low control_high control_verdict
    encoder
""".split()


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; a bar in a cell is escaped, and a line break is a blank."""
    cells = [[" ".join(str(cell).replace("|", r"\|").split()) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(heads), ["---"] * len(heads), *cells])


def results_table(lines: Sequence[dict], columns: Sequence[str] = tuple(COLUMNS)) -> tuple[list[str], list[list[str]]]:
    """Heads and cells in words; a column that is empty everywhere is left out."""
    texts = {head: [COLUMNS[head](line) for line in lines] for head in columns}
    texts |= {USED: []} if set(texts.get(USED, ())) <= {USES[0]} else {}  # nothing, everywhere
    kept = [head for head in columns if any(texts[head])]
    return kept, [[texts[head][k] for head in kept] for k in range(len(lines))]


def comparisons_table(tests: Sequence[dict]) -> tuple[tuple[str, ...], list[tuple]]:
    """Heads and cells, a line a pair of runs."""
    cells = [(t["a"], t["b"], t["n"], t["only_a"], t["only_b"], _p(t["p"]), _p(t["p_holm"])) for t in tests]
    return ("one", "other", "n", "only one right", "only other right", "p", "p, corrected"), cells


def as_csv(columns: Sequence[str], lines: Sequence[dict]) -> str:
    """Comma-separated values with a head."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _no_formula(value) for name, value in line.items()} for line in lines)
    return out.getvalue()


def _no_formula(value: object) -> object:
    """What a spreadsheet would take for a formula, behind an apostrophe: a run's name may come from a stranger."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


# characters that LaTeX takes for commands, or does not know → how it writes them
TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX |= {"±": r"$\pm$", "×": r"$\times$", "<": r"$<$", "−": r"$-$"} | {c: f"\\{c}" for c in "&%$#_{}"}


def results_tex(lines: Sequence[dict]) -> str:
    """A table for a paper (booktabs)."""
    heads, cells = results_table(lines, IN_PAPER)
    head, *rows = [" & ".join(cell.translate(str.maketrans(TEX)) for cell in line) + r" \\" for line in [heads, *cells]]
    table = [r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    columns = "ll" + "r" * (len(heads) - 2)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *table, r"\end{tabular}", ""])


FEW = (
    f"With {FEW_PEOPLE} test people or fewer no interval over people is printed: it would cover far less than it says."
)
