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
    done = process("evaluate.py", *sorted(KEPT.iterdir()), "--output_dir", folder)
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
    for run, readout, (_, n, accuracy, interval, chance, control, *_) in named:
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


def test_the_kept_accuracies_are_counted_from_the_rows_in_a_few_lines_of_numpy(lines):
    for place in sorted(KEPT.glob("*/*/decoded_test.jsonl.gz")):
        rows = rows_of(place)
        line = next(
            (v for (run, _), v in lines[0].items() if run in (place.parent.name, "/".join(place.parts[-3:-1]))), None
        )
        if line is None:
            continue  # one of several seeds, or a control
        said = np.array([row["readouts"][line["readout"]]["label"] for row in rows])
        true = np.array([row["true_label"] for row in rows])
        assert float(line["accuracy"]) == pytest.approx(np.mean(said == true))
        assert float(line["chance"]) == pytest.approx(np.bincount(true).max() / len(true))
        assert int(line["n"]) == len(rows) and int(line["people"]) == len({row["subject"] for row in rows})


def test_kept_rows_are_small_and_tell_no_place_of_any_machine():
    files = [path for path in KEPT.rglob("*") if path.is_file()]
    assert files and sum(path.stat().st_size for path in files) < 5 << 20
    for path in files:
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        assert not re.search(r'"(/|~|[A-Z]:\\)', text), path


def test_simulated_rows_say_so_and_real_ones_do_not():
    for place in KEPT.glob("*/*/decoded_test.jsonl.gz"):
        said = {row["simulated"] for row in rows_of(place)}
        assert said == {place.parts[-3] != "2b"}, place
