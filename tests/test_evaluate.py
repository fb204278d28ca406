import csv
import json

import numpy as np
import pytest

from tests.conftest import run_inside
from tests.processes import by_forks
from tests.utils.test_locks import holder


def row(k, correct, n_classes=4, tasks=False):
    label = k % n_classes
    hit = k < correct
    readouts = {
        "keyword": {"label": label if hit else -1, "chance": 1 / n_classes, "probabilities": None},
        "likelihood": {"label": label, "chance": 1 / n_classes,
        "probabilities": [float(i == label) for i in range(n_classes)]},
    }  # fmt: skip
    return {"index": k, "subject": f"A0{8 + k % 2}", "true_label": label, "true_name": "abcdefghij"[label],
        "readouts": readouts,
            "tasks": ["first", "first", "second", "second"] if tasks else []}  # fmt: skip


def write(folder, correct, n=100, **more):
    folder.mkdir(parents=True)
    rows = [row(k, correct, **more) for k in range(n)]
    if folder.name.endswith(("_shuffled", "_control")):  # labels change places, and as many answers are right
        for r, label, name in [(r, (r["true_label"] + 1) % more.get("n_classes", 4), "abcdefghij") for r in rows]:
            for read in r["readouts"].values():
                read["label"] = label if read["label"] == r["true_label"] else read["label"]
            r |= {"true_label": label, "true_name": name[label]}
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
    assert made == {"results.md", "results.csv", "results.tex", "comparisons.csv", "accuracies.png",
        "confusion_run.png",
                    "reliability_run.png"}  # fmt: skip


@pytest.mark.parametrize("record, note", [
    ({"encoder_loaded": {"loaded": 280, "of": 295}}, "280 of 295 loaded"),
    ({"encoder_loaded": {"loaded": 295, "of": 295}}, None), ({"encoder_loaded": None}, None),
    ({}, "nobody knows how much was loaded"),  # of before it was recorded
    ({"arguments": {"allow_partial": False, "use_pretrained_weights": True}}, None),
    ({"encoder_loaded": {"loaded": "all", "of": None}}, None),
])  # fmt: skip
def test_an_encoder_that_was_loaded_in_part_stands_in_every_table(record, note, script, tmp_path):
    write(tmp_path / "run", correct=80)
    arguments = {"arguments": {"allow_partial": True, "use_pretrained_weights": True}}
    (tmp_path / "run/run.json").write_text(json.dumps(arguments | record))
    done = script("evaluate.py", tmp_path / "run", "--output_dir", tmp_path / "tables", "--no-figures")
    assert done.code == 0, done.err
    assert line_of(done.out, "run").get("encoder") == note
    assert ("**Warning**: run: the encoder's checkpoint" in done.out) == bool(note)
    (line, _) = csv.DictReader((tmp_path / "tables/results.csv").read_text().splitlines())
    assert line["encoder"] == (note or "")
    assert (note or "no note") in (tmp_path / "tables/results.tex").read_text() or not note


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
                 "kappa": (agreed - expected) / (1 - expected), "low": middle - half, "high": middle + half,
                 "n": 240}  # fmt: skip
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


def run_of(folder, correct, seed=0, protocol="published", people=None, shuffle_labels=False, method="", **more):
    """A run with its record, as a training script leaves it."""
    write(folder, correct, **more)
    arguments = {"seed": seed, "protocol": protocol, "shuffle_labels": shuffle_labels, "model_dir": str(folder)}
    arguments |= {"model": method}
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


@pytest.mark.parametrize("loaded, name", [(None, "run (3 seeds)"), ("295/295 loaded", "run_seed0")])
def test_encoders_that_begin_at_random_are_of_their_seed_and_loaded_ones_are_other_runs(script, tmp_path, loaded, name):
    for seed in range(3):
        run_of(tmp_path / f"run_seed{seed}", 70 + seed, seed)
        path = tmp_path / f"run_seed{seed}/run.json"
        record = json.loads(path.read_text())
        record |= {"encoder_loaded": loaded, "depends_on": {"store": "x", "encoder": f"fingerprint {seed}"}}
        path.write_text(json.dumps(record))
    assert line_of(script("evaluate.py", *sorted(tmp_path.iterdir())).out, name)["people"] == "2"


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
    for method, correct in (("one", 60), ("other", 80)):  # METHOD/PERSON_SEED
        for k in (1, 2):
            for seed in (0, 1):
                place = tmp_path / "methods" / method / f"A{k}_seed{seed}"
                run_of(place, correct, seed, protocol=f"loso:A{k}", people=f"A{k}", method=method)
    out = script("evaluate.py", *sorted((tmp_path / "methods").glob("*/*"))).out
    assert line_of(out, "one (2 folds, 2 seeds)")["accuracy"].startswith("60.0 %")
    assert line_of(out, "other (2 folds, 2 seeds)")["accuracy"].startswith("80.0 %")


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


def test_a_text_is_compared_with_the_class_head_beside_it(script, tmp_path):
    for name, correct in (("a", 80), ("b", 60)):
        write(tmp_path / name, correct=correct)
        path = tmp_path / name / "decoded_test.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for r in rows:  # which is right about 90 of the 100
            r["readouts"]["head"] = {
                "label": r["true_label"] if r["index"] < 90 else 3 - r["true_label"],
                "chance": 0.25,
            }
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    script("evaluate.py", *sorted(tmp_path.iterdir()), "--output_dir", tmp_path / "tables")
    lines = list(csv.DictReader((tmp_path / "tables/comparisons.csv").read_text().splitlines()))
    pairs = {(line["a"], line["b"]): (line["only_a"], line["only_b"]) for line in lines}
    texts = ("keyword", "likelihood")
    assert set(pairs) == {("a, keyword", "b, keyword")} | {(f"{k}, {of}", f"{k}, head") for k in "ab" for of in texts}
    assert [pairs["a, keyword", "a, head"], pairs["b, keyword", "b, head"]] == [("0", "10"), ("0", "30")]


def test_a_text_is_compared_with_the_best_baseline_of_its_condition_and_conditions_are_corrected_apart(
    script, tmp_path
):
    session = "all trials, unlabelled (transductive)"
    for name, correct, uses, method in (("text", 80, "nothing", ""), ("csp", 60, "nothing", "csp_lda"),
                                        ("net", 70, "nothing", "eegnet"), ("far", 90, session, "eegnet")):  # fmt: skip
        run_of(tmp_path / name, correct, method=method)
        path = tmp_path / name / "decoded_test.jsonl"
        rows = [json.loads(line) | {"uses": uses} for line in path.read_text().splitlines()]
        for r in rows:
            head = {"head": r["readouts"]["keyword"]} if name == "text" else {}
            r["readouts"] = r["readouts"] | head if head else {"classifier": r["readouts"]["keyword"]}
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    script("evaluate.py", *sorted(tmp_path.iterdir()), "--output_dir", tmp_path / "tables")
    lines = list(csv.DictReader((tmp_path / "tables/comparisons.csv").read_text().splitlines()))
    of_text = {line["b"] for line in lines if line["a"] in ("text, likelihood", "text, head")}
    assert of_text == {"text, head", "net, classifier"}
    apart = [session in line["a"] or session in line["b"] for line in lines]
    assert (apart.count(True), apart.count(False)) == (3, 7)  # 3 pairs and 4 of the text's further read-outs
    ((p, corrected),) = [(float(line["p"]), float(line["p_holm"])) for line in lines
                                  if {line["a"][:3], line["b"][:3]} == {"csp", "far"}]  # fmt: skip
    assert corrected == pytest.approx(3 * p)  # the least of three


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
    for name, correct, uses in (("of", 80, "nothing"), ("of_shuffled", 27, "each trial alone")):
        write(tmp_path / name, correct=correct)
        path = tmp_path / name / "decoded_test.jsonl"
        lines = [json.dumps(json.loads(line) | {"uses": uses}) for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines) + "\n")
    done = script("evaluate.py", tmp_path / "of")
    assert done.code == 2 and "it used 'each trial alone' of the test person, the run 'nothing'" in done.error_line
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


# ---------------------------------------------------------------- folders of runs, kept rows, ablations


def test_a_folder_of_runs_means_each_of_them_and_logs_beside_them_are_skipped(script, tmp_path):
    write(tmp_path / "runs/one", correct=80)
    write(tmp_path / "runs/two", correct=60)
    write(tmp_path / "runs/two_shuffled", correct=25)
    (tmp_path / "runs/one.log").write_text("words")
    (tmp_path / "runs/empty").mkdir()
    done = script("evaluate.py", tmp_path / "runs")
    assert done.code == 0, done.err
    assert line_of(done.out, "one")["accuracy"] == "80.0 %" and line_of(done.out, "two")["accuracy"] == "60.0 %"
    assert "25.0 % (100)" in line_of(done.out, "two")["shuffled-label control (n): its level"]
    done = script("evaluate.py", *(tmp_path / "runs").iterdir())
    assert done.code == 0 and "one.log holds no decoded trials; skipped" in done.out


def test_kept_rows_give_the_same_tables(script, tmp_path):
    write(tmp_path / "run", correct=80)
    write(tmp_path / "run_shuffled", correct=27)
    (tmp_path / "run/run.json").write_text(json.dumps({"arguments": {"seed": 0}, "fixed": {"seed": 0}}))
    first = script("evaluate.py", tmp_path / "run", "--keep_rows", tmp_path / "kept", "--output_dir", tmp_path / "a")
    assert first.code == 0, first.err
    assert sorted(str(p.relative_to(tmp_path / "kept")) for p in (tmp_path / "kept").rglob("*.*")) == [
        "run/decoded_test.jsonl.gz", "run/run.json", "run_shuffled/decoded_test.jsonl.gz"]  # fmt: skip
    again = script("evaluate.py", tmp_path / "kept", "--output_dir", tmp_path / "b", "--keep_rows", tmp_path / "kept2")
    assert again.code == 0, again.err
    assert (tmp_path / "a/results.csv").read_text() == (tmp_path / "b/results.csv").read_text()
    packed = [(tmp_path / k / "run/decoded_test.jsonl.gz").read_bytes() for k in ("kept", "kept2")]
    assert packed[0] == packed[1]  # no time stamp, and nothing lost
    (tmp_path / "kept/run/decoded_test.jsonl.gz").write_bytes(packed[0][:200])
    assert "cannot be unpacked" in script("evaluate.py", tmp_path / "kept").error_line


def recorded(folder, correct, classes=("left hand", "right hand", "feet", "tongue"), **arguments):
    """A run with a record, on BCICIV2a's classes."""
    write(folder, correct)
    rows = [json.loads(line) for line in (folder / "decoded_test.jsonl").read_text().splitlines()]
    rows = [r | {"true_name": classes[r["true_label"]]} for r in rows]
    (folder / "decoded_test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    arguments = {"downstream_dataset": "BCICIV2a", "seed": 0, "window": None, "regions": None} | arguments
    record = {"arguments": arguments, "fixed": arguments, "depends_on": {"store": "s"}}
    (folder / "run.json").write_text(json.dumps(record))


def test_growing_windows_make_a_curve_and_regions_a_map(script, tmp_path):
    regions = ["frontal", "central", "parietal"]
    recorded(tmp_path / "full", 80)
    for end in (1.0, 2.0):
        recorded(tmp_path / f"window_{end:g}", int(30 * end), window=[0.0, end])
    for k, region in enumerate(regions):
        recorded(tmp_path / f"without_{region}", 70 - 10 * k, regions=[r for r in regions if r != region])
        recorded(tmp_path / f"only_{region}", 40 + 10 * k, regions=[region])
    done = script("evaluate.py", *sorted(tmp_path.iterdir()), "--output_dir", tmp_path / "tables")
    assert done.code == 0, done.err
    assert (tmp_path / "tables/windows_1.png").stat().st_size > 8_000
    assert (tmp_path / "tables/regions_1.png").stat().st_size > 20_000
    assert line_of(done.out, "window_2")["part of it"] == "0 to 2 s"
    assert line_of(done.out, "without_frontal")["part of it"] == "central + parietal"
    assert line_of(done.out, "full")["part of it"] == ""


def test_runs_that_differ_in_more_than_the_part_are_no_ablation(script, tmp_path):
    recorded(tmp_path / "a", 80, window=[0.0, 1.0])
    recorded(tmp_path / "b", 80, window=[0.0, 2.0], lr=1.0)
    assert script("evaluate.py", tmp_path / "a", tmp_path / "b", "--output_dir", tmp_path / "tables").code == 0
    assert not list((tmp_path / "tables").glob("windows_*"))


def test_published_figures_stand_apart_and_only_beside_real_recordings(script, tmp_path):
    recorded(tmp_path / "real", 80)
    out = script("evaluate.py", tmp_path / "real").out
    table, published = out.split("## Published, not measured here")
    assert "31.34 %" in published and "31.34 %" not in table and "source" in published
    rows = [
        json.loads(line) | {"simulated": True}
        for line in (tmp_path / "real/decoded_test.jsonl").read_text().splitlines()
    ]
    (tmp_path / "real/decoded_test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = script("evaluate.py", tmp_path / "real").out
    assert "Published" not in out and line_of(out, "real")["EEG"] == "simulated"


# ---------------------------------------------------------------- pictures


@pytest.fixture(scope="module")
def drawn(vi_demo, mapped, tmp_path_factory):
    """Four decoded trials with pictures, and pictures of their true classes, by two processes."""
    folder = tmp_path_factory.mktemp("drawn") / "vi"
    run_inside("generate_vi_eeg2img.py", *vi_demo.vi_generation(folder, mapper_path=mapped, num_inference_steps=2))
    by_forks(2, folder.parent / "log", "draw_true_class.py", folder, "--cuda", -1)
    return folder


def test_pictures_of_the_true_class_are_drawn_as_their_neighbours_and_once(drawn, script):
    from datasets.description import load_description
    from stages.pictures import PictureFolder, drawn_with, true_class_picture
    from stages.rows import read_rows

    rows, names = read_rows(drawn / "decoded.jsonl"), None
    for row in rows:
        names = names or PictureFolder(drawn, rows, {}, 0)
        of_true, neighbour = drawn_with(true_class_picture(drawn, row)), drawn_with(names.path("generated", row))
        assert of_true["prompt"] == load_description("VI").image_prompts[row.true_label]
        assert {k: of_true[k] for k in ("seed", "model", "steps", "guidance", "size")} == {
            k: neighbour[k] for k in ("seed", "model", "steps", "guidance", "size")}  # fmt: skip
        if row.predicted_label == row.true_label:  # then it is the same picture
            assert true_class_picture(drawn, row).stat().st_size == names.path("generated", row).stat().st_size
    before = {path: path.stat().st_mtime_ns for path in (drawn / "true_class").glob("*.png")}
    done = script("draw_true_class.py", drawn, "--cuda", -1)
    assert done.code == 0 and "0 pictures drawn from the true class, 4 were there" in done.out
    assert {path: path.stat().st_mtime_ns for path in (drawn / "true_class").glob("*.png")} == before


def test_images_are_scored_and_the_page_shows_every_picture(drawn, vi_demo, script, tmp_path):
    flags = ("--images", "--report", "--clip_model", vi_demo.pth / "clip", "--output_dir", tmp_path / "tables")
    done = script("evaluate.py", drawn, *flags)
    assert done.code == 0, done.err
    lines = list(csv.DictReader((tmp_path / "tables/images.csv").read_text().splitlines()))
    assert [line["images"] for line in lines] == ["as decoded", "paired at random", "true class's prompt"]
    assert (
        all(line["n"] == "4" and -1 <= float(line["PixCorr"]) <= 1 for line in lines) and "CLIP (pth/clip)" in lines[0]
    )
    for name in ("AlexNet 2", "AlexNet 5", "Inception", "SwAV"):
        warned = next(line for line in done.out.splitlines() if "not scored, because it is not there" in line)
        assert f"{name}: " in warned and name not in lines[0]
    page = (tmp_path / "tables/report.html").read_text()
    assert page.count('<li class="card') == 4 and page.count("<polyline") == 4 * 5
    assert page.count("simulated EEG: no person was recorded") == 4 and page.count("seen</figcaption>") == 4


def test_a_page_without_the_store_says_so_and_one_without_stimuli_is_one_line(drawn, script, tmp_path):
    record = json.loads((drawn / "run.json").read_text())
    for path in drawn.glob("*.*"):
        (tmp_path / "moved").mkdir(exist_ok=True)
        (tmp_path / "moved" / path.name).write_bytes(path.read_bytes())
    record["arguments"]["datasets_dir"] = str(tmp_path / "nowhere")
    (tmp_path / "moved/run.json").write_text(json.dumps(record))
    done = script("evaluate.py", tmp_path / "moved", "--report", "--output_dir", tmp_path / "tables")
    assert done.code == 0 and "no EEG on its cards" in done.out
    assert (tmp_path / "tables/report.html").read_text().count("no EEG: the store is not at hand") == 4
    done = script("evaluate.py", tmp_path / "moved", "--images", "--stimuli_dir", tmp_path)
    assert done.code == 2 and "is missing" in done.error_line


@pytest.mark.parametrize("flags, message", [
    (("--images",), "none of these folders holds pictures"), (("--report",), "--report needs --output_dir"),
])  # fmt: skip
def test_what_pictures_and_pages_need_is_said(script, tmp_path, flags, message):
    write(tmp_path / "run", correct=80)
    done = script("evaluate.py", tmp_path / "run", *flags)
    assert done.code == 2 and message in done.err


def test_true_classes_of_a_folder_without_pictures_are_one_line(script, tmp_path):
    recorded(tmp_path / "run", 80)
    (tmp_path / "run/decoded_test.jsonl").rename(tmp_path / "run/decoded.jsonl")
    done = script("draw_true_class.py", tmp_path / "run", "--cuda", -1)
    assert done.code == 2 and "is not there, or does not say how it was drawn; draw first" in done.error_line


def test_drawn_trials_of_a_run_in_the_table_are_not_counted_twice(drawn, mapped, vi_demo, script, tmp_path):
    flags = ("--images", "--clip_model", vi_demo.pth / "clip")
    done = script("evaluate.py", mapped, drawn, *flags)
    assert done.code == 0 and "the 4 trials of vi are some of mapped's" in done.out, done.err
    assert line_of(done.out, "mapped", "head")["n"] == "60" and "| vi | head |" not in done.out
    assert "| vi | as decoded | 4 |" in done.out
    assert line_of(script("evaluate.py", drawn).out, "vi", "head")["n"] == "4"  # alone it has its line


# ---------------------------------------------------------------- what a fresh reader found


def test_groups_of_seeds_keep_their_own_names_and_the_curve_its_own_points(script, tmp_path, monkeypatch):
    from evaluation import figures

    drawn = []
    monkeypatch.setattr(
        figures, "windows_figure", lambda lines, path: drawn.append([100 * x["accuracy"] for x in lines])
    )
    for end, correct in ((1.0, 30), (2.0, 45), (3.0, 65)):
        for seed in (0, 1):
            recorded(tmp_path / f"abl_seed{seed}_w{end:g}", correct + seed, window=[0.0, end], seed=seed)
    recorded(tmp_path / "means1", 70, seed=0, lr=2)
    recorded(tmp_path / "means2", 72, seed=1, lr=2)
    done = script("evaluate.py", *sorted(p for p in tmp_path.iterdir()), "--output_dir", tmp_path / "tables")
    assert done.code == 0, done.err
    for name, accuracy in (("abl_w1 (2 seeds)", "30.5 %"), ("abl_w2 (2 seeds)", "45.5 %"), ("abl_w3 (2 seeds)",
        "65.5 %"),
                           ("means (2 seeds)", "71.0 %")):  # fmt: skip
        assert line_of(done.out, name)["accuracy"].startswith(accuracy)


def test_kept_rows_keep_runs_and_controls_together_whatever_their_folders_are_called(script, tmp_path):
    for parent, correct in (("one", 80), ("two", 60)):
        write(tmp_path / parent / "vi", correct=correct)
        write(tmp_path / parent / "vi_shuffled", correct=correct // 3)
    write(tmp_path / "one_vi", correct=40)
    first = script(
        "evaluate.py", tmp_path / "one", tmp_path / "two", tmp_path / "one_vi", "--keep_rows", tmp_path / "kept"
    )
    assert first.code == 0, first.err
    again = script("evaluate.py", tmp_path / "kept")
    assert again.code == 0, again.err
    controls = [line_of(again.out, name)["shuffled-label control (n): its level"][:6] for name in ("one_vi", "two_vi")]
    assert controls == ["26.0 %", "20.0 %"] and line_of(again.out, "one_vi-2")["accuracy"] == "40.0 %"
    assert script("evaluate.py", tmp_path / "one/vi/..", "--keep_rows", tmp_path / "kept2").code == 0
    assert not (tmp_path / "decoded_test.jsonl.gz").exists() and not (tmp_path / "run.json").exists()


def test_a_control_without_rows_yet_is_named_and_stops_nothing(script, tmp_path):
    write(tmp_path / "run", correct=80)
    (tmp_path / "run_shuffled").mkdir()
    done = script("evaluate.py", *tmp_path.iterdir())
    assert done.code == 0 and "holds no decoded trials yet" in done.out
    assert line_of(done.out, "run")["shuffled-label control (n): its level"] == "not run"


@pytest.mark.parametrize("argument", [{"window": "ab"}, {"window": [0, "x"]}, {"window": [0.0, 1e999]}, {"regions": 5},
    {"regions": []},
                                      {"downstream_dataset": ["VI"]}, {"datasets_dir": 3},
                                      {"protocol": {}}])  # fmt: skip
def test_a_strange_record_is_one_line(script, tmp_path, argument):
    recorded(tmp_path / "run", 80, **argument)
    done = script("evaluate.py", tmp_path / "run")
    assert done.code == 2 and f"{next(iter(argument))} is" in done.error_line


def test_a_map_of_weak_regions_is_drawn_and_of_too_few_electrodes_is_not(script, tmp_path):
    recorded(tmp_path / "full", 20)
    for k, region in enumerate(("central", "parietal", "frontal", "nowhere")):
        recorded(tmp_path / f"only_{region}", 2 + k, regions=[region])
    done = script("evaluate.py", *sorted(tmp_path.iterdir()), "--output_dir", tmp_path / "tables")
    assert done.code == 0 and (tmp_path / "tables/regions_1.png").exists(), done.err
    done = script("evaluate.py", tmp_path / "full", tmp_path / "only_frontal", "--output_dir", tmp_path / "few")
    assert done.code == 0 and not list((tmp_path / "few").glob("regions*"))  # one electrode


def test_the_probe_beside_a_text_run_reads_the_same_part_and_has_the_same_seed(script, tmp_path):
    same = {"token_pooling": "region", "encoder": "csbrain", "protocol": "published"}
    for seed, window in ((0, None), (1, None), (0, [0.0, 1.0])):
        name = f"s{seed}{'_w' if window else ''}"
        recorded(tmp_path / f"text_{name}", 50, **same, seed=seed, window=window, tuned=name)
        recorded(tmp_path / f"probe_{name}", 60 + 10 * seed + (5 if window else 0), **same, seed=seed, window=window,
            model="linear_probe",
                 tuned=name)  # fmt: skip
    out = script("evaluate.py", *sorted(tmp_path.iterdir())).out
    assert [line_of(out, f"text_{n}")["linear probe"] for n in ("s0", "s1", "s0_w")] == ["60.0 %", "70.0 %", "65.0 %"]
    for part in ({"align": "session"}, {"band": [4, 40]}):  # of which there is no probe
        recorded(tmp_path / "other" / next(iter(part)), 50, **same, **part)
    out = script("evaluate.py", *sorted(tmp_path.iterdir()), *sorted((tmp_path / "other").iterdir())).out
    assert [line_of(out, name)["linear probe"] for name in ("text_s0", "align", "band")] == ["60.0 %", "", ""]


@pytest.mark.parametrize("flags, message", [
    (("--control_suffix", "/x"), "no end of a folder's name"), (("--control_suffix", ""), "no end of a folder's name"),
    (("--audit", "store", "--report", "--output_dir", "x"), "--audit makes no tables"),
])  # fmt: skip
def test_flags_that_do_not_go_together_are_one_line(script, tmp_path, flags, message):
    write(tmp_path / "run", correct=80)
    done = script("evaluate.py", tmp_path / "run", *flags)
    assert done.code == 2 and message in done.err


def test_a_control_with_the_runs_own_labels_is_none(script, tmp_path):
    write(tmp_path / "run", correct=80)
    (tmp_path / "run_shuffled").mkdir()
    (tmp_path / "run_shuffled/decoded_test.jsonl").write_text((tmp_path / "run/decoded_test.jsonl").read_text())
    (tmp_path / "run_shuffled/run.json").write_text(json.dumps({"arguments": {"shuffle_labels": True}}))
    assert "its labels are the run's own" in script("evaluate.py", tmp_path / "run").error_line
    write(tmp_path / "other", correct=80)
    write(tmp_path / "other_shuffled", correct=25)
    assert "has no run.json: nobody can tell" in script("evaluate.py", tmp_path / "other").out


def folds(tmp_path, method, seeds, correct):
    for seed, people in seeds.items():
        for person in people:
            folder = tmp_path / f"{method}_seed{seed}_{person}"
            recorded(folder, correct, protocol=f"loso:{person}", seed=seed, method=method)
            rows = [
                json.loads(line) | {"subject": person}
                for line in (folder / "decoded_test.jsonl").read_text().splitlines()
            ]
            (folder / "decoded_test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_two_methods_under_leave_one_subject_out_are_compared(script, tmp_path):
    people = [f"A0{k}" for k in range(1, 6)]
    folds(tmp_path, "one", {0: people}, 80)
    folds(tmp_path, "two", {0: people}, 60)
    done = script("evaluate.py", *sorted(tmp_path.iterdir()))
    assert done.code == 0, done.err
    compared = done.out.split("## Runs on the same trials")[1].split("##")[0]
    assert "| 500 | 100 | 0 | < 0.0001 |" in compared


def test_seeds_with_other_folds_are_no_mean(script, tmp_path):
    people = [f"A0{k}" for k in range(1, 6)]
    folds(tmp_path, "one", {0: people, 1: people[:3]}, 80)
    done = script("evaluate.py", *sorted(tmp_path.iterdir()))
    assert done.code == 0 and "have different folds" in done.out
    lines = [
        line.split("|")[4:6]
        for line in done.out.splitlines()
        if line.startswith("| one") and "| keyword | 80.0 %" in line
    ]
    assert [n.strip() for n, _ in lines if n.strip().isdigit()] == ["500", "300"]


def test_the_first_of_several_seeds_is_the_smallest_number(script, tmp_path):
    for seed in (2, 3, 10):
        recorded(tmp_path / f"a_seed{seed}", 40 + seed, seed=seed)
    recorded(tmp_path / "b", 90, other=1)
    out = script("evaluate.py", *sorted(tmp_path.iterdir())).out
    assert "a_seed2, keyword" in out.split("## Runs on the same trials")[1].split("##")[0]


def test_a_folder_of_rows_that_another_process_writes_is_refused(script, tmp_path):
    write(tmp_path / "run", correct=80)
    for flag, lock in (("--keep_rows", "x/.lock"), ("--output_dir", "x/.lock"), ("--ensemble", ".x.lock")):
        (tmp_path / "x").mkdir(exist_ok=True)
        first = holder(tmp_path / lock)
        try:
            done = script("evaluate.py", tmp_path / "run", flag, tmp_path / "x")
            assert done.code == 2 and f"process {first.pid} on " in done.error_line
            assert not [path.name for path in (tmp_path / "x").iterdir() if path.name != ".lock"]
        finally:
            first.kill()
            first.wait()


def test_a_folder_and_the_file_in_it_are_one_run_and_are_not_kept_into_themselves(script, tmp_path):
    write(tmp_path / "run", correct=80)
    done = script("evaluate.py", tmp_path / "run", tmp_path / "run/decoded_test.jsonl")
    assert (
        done.code == 0 and "Runs on the same trials" not in done.out and done.out.count("| run | keyword | 80.0 %") == 1
    )
    done = script("evaluate.py", tmp_path / "run", "--keep_rows", tmp_path)
    assert "is the run's own folder" in done.error_line and not (tmp_path / "run/decoded_test.jsonl.gz").exists()
