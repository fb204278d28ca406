"""The README's and docs/results.md's numbers against the rows that are kept under docs/results/."""

import csv
import gzip
import json
import re

import numpy as np
import pytest

from tests.conftest import ROOT

KEPT = ROOT / "docs/results"


@pytest.fixture(scope="module")
def lines(process, tmp_path_factory):
    """(run, read-out) → line, and the text, as `python evaluate.py docs/results/*` writes them."""
    folder = tmp_path_factory.mktemp("tables")
    done = process("evaluate.py", *sorted(KEPT.iterdir()), "--output_dir", folder, "--no-figures")
    assert done.code == 0, done.err
    found = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    return {(line["run"], line["readout"]): line for line in found}, (folder / "results.md").read_text()


def rows_of(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def cells(text):
    """Cells of the lines of tables that name a run: "… (`run`, read-out)"."""
    for line in text.splitlines():
        named = re.match(r"\| [^|]*\(`([^`]+)`, (\w+)\) \|", line)
        if named:
            yield named[1], named[2], [cell.strip() for cell in line.strip().strip("|").split("|")]


@pytest.mark.parametrize("document", ["README.md", "docs/results.md"])
def test_every_line_that_names_a_run_has_that_runs_numbers(lines, document):
    named = list(cells((ROOT / document).read_text()))
    assert len(named) >= 4
    for run, readout, (_, n, accuracy, interval, chance, control, *more) in named:
        line = lines[0][run, readout]
        sd = f" ± {100 * float(line['sd']):.1f}" if line["sd"] else ""
        assert accuracy == f"{100 * float(line['accuracy']):.1f} %{sd}", run
        seeds = f"{line['seeds']} × " if int(line["seeds"]) > 1 else ""
        assert n == f"{seeds}{line['n']} ({line['people']})", run
        wanted = (
            line["interval_over"]
            if not line["low"]
            else f"{100 * float(line['low']):.1f} to {100 * float(line['high']):.1f} %"
        )
        assert interval == wanted, run
        assert chance == f"{100 * float(line['chance']):.1f} %", run
        assert control == (f"{100 * float(line['control']):.1f} %" if line["control"] else "not run"), run
        if more and re.fullmatch(
            r"[\d.]+ %", more[0]
        ):  # the linear probe beside a language model, the other read-out of a mapper
            other = lines[0].get((run, "prototype"), {}).get("accuracy")
            assert more[0] == f"{100 * float(line['linear_probe'] or other):.1f} %", run


def test_every_section_with_a_table_has_lines_and_persons_are_those_of_the_rows(lines):
    text = (ROOT / "docs/results.md").read_text()
    ablations = text.split("### Ablations")[1].split("\n## ")[0]
    assert len(list(cells(ablations))) >= 20
    by_person = text.split("By person")[1].split("What a student")[0]
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in by_person.splitlines() if line.startswith("|")
    ]
    for run, *shares in table[2:]:
        for person, share in zip(table[0][1:], shares, strict=True):
            assert re.search(rf"\| {re.escape(run)} \| \w+ \| {person} \| {re.escape(share)} \|", lines[1]), (
                run,
                person,
            )
    assert len(table) >= 8


def test_the_kept_accuracies_are_counted_from_the_rows_in_a_few_lines_of_numpy(lines):
    counted = 0
    for (run, readout), line in lines[0].items():
        several = re.fullmatch(r"(.+) \((\d) (seeds|folds)(?:, (\d) seeds)?\)", run)
        pattern = f"*/{several[1]}_{'seed?' if several[3] == 'seeds' else '*[0-9]'}" if several else f"*/{run}"
        places = [p for p in KEPT.glob(pattern) if (p / "decoded_test.jsonl.gz").exists()]
        if several and not places:  # METHOD/PERSON_seedN
            places = [p.parent for p in KEPT.glob(f"{several[1]}/*_seed?/decoded_test.jsonl.gz")]
        if several and several[4]:  # folds of several seeds: a mean a seed
            check_seeds(line, readout, places, folds=int(several[2]), seeds=int(several[4]))
            counted += len(places)
            continue
        accuracies, counts = [], []
        for place in places:
            rows = rows_of(place / "decoded_test.jsonl.gz")
            said = np.array([row["readouts"][readout]["label"] for row in rows])
            true = np.array([row["true_label"] for row in rows])
            accuracies.append(np.mean(said == true))
            assert float(line["chance"]) == pytest.approx(np.bincount(true).max() / len(true))
            counts.append((len(rows), len({row["subject"] for row in rows})))
        folds = several and several[3] == "folds"
        whole = np.sum(counts, axis=0) if folds else counts[0]
        assert [int(line["n"]), int(line["people"])] == list(whole) and len(places) == (
            int(several[2]) if several else 1
        ), run
        assert float(line["accuracy"]) == pytest.approx(np.mean(accuracies))
        assert not line["sd"] or float(line["sd"]) == pytest.approx(np.std(accuracies, ddof=1))
        counted += len(places)
    assert counted > 60


def check_seeds(line, readout, places, folds, seeds):
    """A line of several seeds, each of them the folds of all people."""
    by_seed = {}
    for place in places:
        rows = rows_of(place / "decoded_test.jsonl.gz")
        right = [row["readouts"][readout]["label"] == row["true_label"] for row in rows]
        by_seed.setdefault(place.name[-1], []).append(np.mean(right))
    assert len(by_seed) == seeds and {len(of) for of in by_seed.values()} == {folds}
    means = [np.mean(of) for of in by_seed.values()]
    assert float(line["accuracy"]) == pytest.approx(np.mean(means))
    assert float(line["sd"]) == pytest.approx(np.std(means, ddof=1))


def test_kept_rows_are_small_and_tell_no_place_of_any_machine():
    files = [path for path in KEPT.rglob("*") if path.is_file()]
    assert files and sum(path.stat().st_size for path in files) < 5 << 20
    for path in files:
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        assert not re.search(r'"(/|~|[A-Z]:\\)', text), path


def test_simulated_rows_say_so_and_real_ones_do_not():
    for place in KEPT.rglob("decoded_test.jsonl.gz"):
        said = {row["simulated"] for row in rows_of(place)}
        assert said == {not place.relative_to(KEPT).parts[0].startswith("2b")}, place
