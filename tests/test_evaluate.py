import csv
import json

import numpy as np
import pytest


def row(k, correct, n_classes=4, tasks=False):
    label = k % n_classes
    hit = k < correct
    readouts = {
        "keyword": {"label": label if hit else -1, "chance": 1 / n_classes, "probabilities": None},
        "likelihood": {"label": label, "chance": 1 / n_classes, "probabilities": [float(i == label) for i in range(n_classes)]},
    }  # fmt: skip
    return {"index": k, "subject": f"A0{8 + k % 2}", "true_label": label, "true_name": "abcdefghij"[label], "readouts": readouts,
            "tasks": ["first", "first", "second", "second"] if tasks else []}  # fmt: skip


def write(folder, correct, n=100, **more):
    folder.mkdir(parents=True)
    rows = [row(k, correct, **more) for k in range(n)]
    (folder / "decoded_test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def line_of(out, run, readout="keyword"):
    """A line of the table by its heads."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    return next(dict(zip(lines[0], cells, strict=True)) for cells in lines if cells[:2] == [run, readout])


def test_the_table_has_n_people_interval_chance_p_and_the_control(script, tmp_path):
    write(tmp_path / "run", correct=80)
    write(tmp_path / "run_shuffled", correct=27)
    done = script("evaluate.py", tmp_path / "run", "--output_dir", tmp_path / "tables")
    assert done.code == 0, done.err
    line = line_of(done.out, "run")
    assert (line["accuracy"], line["n"], line["people"]) == ("80.0 %", "100", "2")
    assert line["95 % interval"] == "71.1 to 86.7 % (trials of these people)"
    assert (line["chance"], line["p, binomial"], line["p, permuted"]) == ("25.0 %", "< 0.0001", "0.0005")
    assert (line["balanced"], line["kappa"]) == ("80.0 %", "0.750")
    assert line["shuffled-label control (n): its level"].startswith("27.0 % (100), ")
    assert (
        "| run | keyword | A08 | 80.0 % | 50 |" in done.out and "| run | keyword | a | 80.0 % | 25 | 20 |" in done.out
    )
    assert line_of((tmp_path / "tables/results.md").read_text(), "run") == line
    made = {path.name for path in (tmp_path / "tables").iterdir()}
    assert made == {"results.md", "results.csv", "results.tex", "comparisons.csv", "accuracies.png", "confusion_run.png",
                    "reliability_run.png"}  # fmt: skip


def test_every_number_is_recomputed_from_the_rows(script, tmp_path):
    rng = np.random.default_rng(0)
    rows = [row(k, 0, n_classes=10) for k in range(240)]
    for r in rows:
        p = rng.dirichlet(np.ones(10)) + (rng.random(10) < 0.1)
        p = [round(float(v), 6) for v in p / p.sum()]
        r["readouts"]["likelihood"] |= {"label": int(np.argmax(p)), "probabilities": p}
        r["readouts"]["keyword"]["label"] = int(rng.choice([r["true_label"], -1, 3]))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/decoded.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert script("evaluate.py", tmp_path / "run", "--output_dir", tmp_path / "tables").code == 0
    lines = list(csv.DictReader((tmp_path / "tables/results.csv").read_text().splitlines()))
    for line in lines:
        true = np.array([r["true_label"] for r in rows])
        said = np.array([r["readouts"][line["readout"]]["label"] for r in rows])
        recall = [np.mean(said[true == k] == k) for k in range(10)]
        f1 = [2 * np.sum((said == k) & (true == k)) / (np.sum(said == k) + np.sum(true == k)) for k in range(10)]
        expected = sum(np.mean(said == k) * np.mean(true == k) for k in range(10))
        agreed, z = np.mean(true == said), 1.959963984540054
        half = z * np.sqrt(agreed * (1 - agreed) / 240 + z**2 / (4 * 240**2)) / (1 + z**2 / 240)
        middle = (agreed + z**2 / 480) / (1 + z**2 / 240)
        found = {"accuracy": agreed, "balanced_accuracy": np.mean(recall), "macro_f1": np.mean(f1), "chance": 0.1,
                 "kappa": (agreed - expected) / (1 - expected), "low": middle - half, "high": middle + half, "n": 240}  # fmt: skip
        assert {name: float(line[name]) for name in found} == pytest.approx(found)
    p = np.array([r["readouts"]["likelihood"]["probabilities"] for r in rows])
    assert float(lines[1]["top3"]) == pytest.approx(
        np.mean([t in np.argsort(-q)[:3] for t, q in zip(true, p, strict=True)])
    )
    sure = p.max(axis=1)
    bins = [(true == said)[(sure * 10).astype(int) == b] - sure[(sure * 10).astype(int) == b] for b in range(10)]
    assert float(lines[1]["ece"]) == pytest.approx(sum(abs(b.sum()) for b in bins) / 240)
    assert lines[0]["ece"] == lines[0]["top3"] == ""


def test_a_control_off_its_level_and_a_missing_control_are_said(script, tmp_path):
    for name, correct in (("leak", 60), ("low", 5)):
        write(tmp_path / name, correct=80)
        write(tmp_path / f"{name}_shuffled", correct=correct)
    write(tmp_path / "lone", correct=80)
    out = script("evaluate.py", *(tmp_path / name for name in ("leak", "low", "lone"))).out
    said = [line_of(out, name)["shuffled-label control (n): its level"] for name in ("leak", "low", "lone")]
    assert "60.0 % (100), ABOVE its level" in said[0] and said[2] == "not run"


def test_a_control_is_found_by_its_suffix_and_stands_in_its_runs_line_alone(script, tmp_path):
    write(tmp_path / "run", correct=80)
    write(tmp_path / "run_control", correct=27)
    out = script("evaluate.py", *tmp_path.iterdir(), "--control_suffix", "_control").out
    assert line_of(out, "run")["shuffled-label control (n): its level"].startswith("27.0 % (100)")
    assert "| run_control |" not in out


def test_where_recordings_hold_some_classes_that_is_said(script, tmp_path):
    write(tmp_path / "run", correct=80, tasks=True)
    write(tmp_path / "run_shuffled", correct=50, tasks=True)
    done = script("evaluate.py", tmp_path / "run")
    line = line_of(done.out, "run")
    assert line["task"] == "80.0 %" and line["recording alone"] == "50.0 %"
    assert line["within task (n)"] == "100.0 % (80)"  # a text without a class has no task
    assert line["shuffled-label control (n): its level"].startswith("50.0 % (100)")
    assert line_of(done.out, "run", "likelihood")["within task (n)"] == "100.0 % (100)"
    assert "knowing the recording" in done.out


def test_what_holds_no_trials_is_named_and_skipped_and_names_that_clash_are_told_apart(script, tmp_path):
    for place, correct in (("one/run", 80), ("two/run", 60)):
        write(tmp_path / place, correct=correct)
    (tmp_path / "empty").mkdir()
    done = script("evaluate.py", tmp_path / "one/run", tmp_path / "two/run/decoded_test.jsonl", tmp_path / "empty",
                  tmp_path / "two/run", tmp_path / "one/run", "--output_dir", tmp_path / "tables")  # fmt: skip
    assert done.code == 0 and f"{tmp_path / 'empty'} holds no decoded trials; skipped" in done.out, done.err
    assert line_of(done.out, "one/run")["accuracy"] == "80.0 %" and line_of(done.out, "two/run")["accuracy"] == "60.0 %"
    assert (tmp_path / "tables/confusion_one_run.png").exists()


def run_of(folder, correct, seed=0, protocol="published", people=None, shuffle_labels=False, **more):
    """A run with its record, as a training script leaves it."""
    write(folder, correct, **more)
    arguments = {"seed": seed, "protocol": protocol, "shuffle_labels": shuffle_labels, "model_dir": str(folder)}
    fixed = {k: v for k, v in arguments.items() if k != "model_dir"}
    (folder / "run.json").write_text(json.dumps({"arguments": arguments, "fixed": fixed, "depends_on": {"store": "x"}}))
    if people:
        path = folder / "decoded_test.jsonl"
        rows = [json.loads(line) | {"subject": people} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_seeds_of_one_command_are_one_line(script, tmp_path):
    for seed, correct in enumerate((70, 80, 90)):
        run_of(tmp_path / f"run_seed{seed}", correct, seed)
        run_of(tmp_path / f"run_seed{seed}_shuffled", 25, seed, shuffle_labels=True)
    out = script("evaluate.py", *sorted(tmp_path.iterdir())).out
    line = line_of(out, "run (3 seeds)")
    assert (line["accuracy"], line["n"], line["people"]) == ("80.0 % ± 10.0", "3 × 100", "2")
    assert line["95 % interval"] == "2 people" and "(3 × 100)" in line["shuffled-label control (n): its level"]


def test_folds_are_one_line_with_an_interval_over_people(script, tmp_path):
    hits = (50, 60, 70, 80, 65)
    for k, correct in enumerate(hits):
        run_of(tmp_path / f"loso_A{k}", correct, protocol=f"loso:A{k}", people=f"A{k}")
    line = line_of(script("evaluate.py", *sorted(tmp_path.iterdir())).out, "loso_A (5 folds)")
    half = 2.776445 * np.std(hits, ddof=1) / np.sqrt(5)
    assert line["95 % interval"] == f"{65 - half:.1f} to {65 + half:.1f} % (people)" and line["accuracy"] == "65.0 %"
    assert (line["n"], line["people"]) == ("500", "5")
    two = line_of(script("evaluate.py", tmp_path / "loso_A0", tmp_path / "loso_A1").out, "loso_A (2 folds)")
    assert two["95 % interval"] == "2 people"


def test_runs_on_the_same_trials_are_compared_and_others_are_not(script, tmp_path):
    for name, correct in (("a", 80), ("b", 60), ("c", 80)):
        write(tmp_path / name, correct=correct)
    write(tmp_path / "other", correct=50, n=60)
    done = script("evaluate.py", *sorted(tmp_path.iterdir()), "--output_dir", tmp_path / "tables")
    lines = list(csv.DictReader((tmp_path / "tables/comparisons.csv").read_text().splitlines()))
    assert [(line["a"][0], line["b"][0]) for line in lines] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert (lines[0]["only_a"], lines[0]["only_b"]) == ("20", "0") and float(lines[0]["p"]) == pytest.approx(
        2 * 0.5**20
    )
    assert float(lines[0]["p_holm"]) == pytest.approx(3 * 2 * 0.5**20) and float(lines[1]["p_holm"]) == 1
    assert "McNemar" in done.out


def test_one_answer_for_all_and_classes_that_are_never_answered_are_warned_of(script, tmp_path):
    write(tmp_path / "run", correct=100)
    path = tmp_path / "run/decoded_test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for r in rows[:95]:
        r["readouts"]["keyword"]["label"] = 1
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = script("evaluate.py", tmp_path / "run").out
    assert "keyword: 96.0 % of the answers are 'b'" in out and "likelihood: 96" not in out


@pytest.mark.parametrize("made", [False, True])
def test_nothing_to_score_is_one_line(script, tmp_path, made):
    (tmp_path / "run").mkdir()
    if made:
        (tmp_path / "run/decoded.jsonl").write_text("")
    done = script("evaluate.py", tmp_path / "run")
    assert done.code == 2 and str(tmp_path / "run") in done.error_line


NAN = {"keyword": {"label": 0, "chance": 0.25, "probabilities": [float("nan")] * 4}}


@pytest.mark.parametrize("change, message", [
    ({"true_label": 9}, "true_label"), ({"true_label": True}, "true_label"), ({"index": -1}, "index"),
    ({"subject": 3}, "subject"), ({"subject": "x" * 5000}, "subject"), ({"surprise": 1}, "surprise"),
    ({"readouts": {}}, "no read-out"), ({"readouts": NAN}, "probabilities"), ({"tasks": ["one"]}, "tasks"),
    ({"readouts": {"keyword": {"label": 4, "chance": 0.25}}}, "label"),
    ({"readouts": {"keyword": {"label": 0, "chance": 0}}}, "chance"), ({"readouts": [1]}, "is no decoded trial"),
    ({"readouts": {"other": {"label": 0, "chance": 0.25}}}, "different read-outs"), ({"index": 0}, "the trial 0 twice"),
])  # fmt: skip
def test_a_line_that_is_no_decoded_trial_is_named(script, tmp_path, change, message):
    lines = [json.dumps(row(0, 1)), json.dumps(row(1, 1) | change)]
    (tmp_path / "decoded.jsonl").write_text("\n".join(lines) + "\n")
    done = script("evaluate.py", tmp_path)
    assert done.code == 2 and message in done.error_line
    assert "line 2 is no decoded trial" in done.error_line or "twice" in message or "different" in message


@pytest.mark.parametrize("second", ["not json", "[]", "3", '{"index": 1}', "[" * 5000, '{"index": 1'])
def test_a_line_that_is_no_row_is_named(script, tmp_path, second):
    (tmp_path / "decoded.jsonl").write_text(json.dumps(row(0, 1)) + f"\n{second}\n")
    done = script("evaluate.py", tmp_path)
    assert done.code == 2 and "line 2 is no decoded trial" in done.error_line


def test_a_file_that_is_no_text_is_one_line(script, tmp_path):
    (tmp_path / "decoded.jsonl").write_bytes(b"\xff\xfe\x00")
    assert "is damaged" in script("evaluate.py", tmp_path).error_line


def test_what_is_no_control_of_the_run_is_refused(script, tmp_path):
    write(tmp_path / "run", correct=80)
    write(tmp_path / "run_shuffled", correct=27, n=50)
    done = script("evaluate.py", tmp_path / "run")
    assert done.code == 2 and "run_shuffled is not the control of this run" in done.error_line
    write(tmp_path / "other", correct=80)
    write(tmp_path / "other_shuffled", correct=27)
    (tmp_path / "other_shuffled/run.json").write_text('{"arguments": {"shuffle_labels": false}}')
    done = script("evaluate.py", tmp_path / "other")
    assert done.code == 2 and "without --shuffle_labels" in done.error_line


def test_names_that_matplotlib_would_take_for_formulas_are_drawn_as_they_are(script, tmp_path):
    write(tmp_path / "run $x^", correct=80)
    path = tmp_path / "run $x^/decoded_test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(r | {"true_name": f"${r['true_name']}_{{"}) + "\n" for r in rows))
    done = script("evaluate.py", tmp_path / "run $x^", "--output_dir", tmp_path / "tables")
    assert done.code == 0 and (tmp_path / "tables/confusion_run $x^.png").exists(), done.err


def test_folders_are_named_as_they_are_whatever_stands_for_them(script, tmp_path, monkeypatch):
    write(tmp_path / "run", correct=80)
    write(tmp_path / "run_shuffled", correct=25)
    monkeypatch.chdir(tmp_path / "run")
    assert line_of(script("evaluate.py", ".").out, "run")["shuffled-label control (n): its level"] != "not run"
