import json

import pytest


def row(k, correct, n_classes=4, tasks=False):
    label = k % n_classes
    hit = k < correct
    readouts = {
        "keyword": {"label": label if hit else -1, "chance": 1 / n_classes, "probabilities": None},
        "likelihood": {"label": label, "chance": 1 / n_classes, "probabilities": [float(i == label) for i in range(n_classes)]},
    }  # fmt: skip
    return {"index": k, "subject": f"A0{8 + k % 2}", "true_label": label, "true_name": "abcd"[label], "readouts": readouts,
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
    assert (line["95 % interval"], line["chance"], line["p"]) == ("71.1 to 86.7 %", "25 %", "< 0.0001")
    assert line["shuffled-label control (n)"] == "27.0 % (100), at its level"
    assert line["control's level: 95 % of guessing"] == "25.0 %: 17.0 to 34.0 %"
    assert line["task"] == line["recording alone"] == ""
    assert "A08 80.0 % (n = 50), A09 80.0 % (n = 50)" in done.out
    table = (tmp_path / "tables/table.md").read_text()
    assert (tmp_path / "tables/confusion_run.png").exists() and line_of(table, "run") == line


def test_a_control_off_its_level_and_a_missing_control_are_said(script, tmp_path):
    for name, correct in (("leak", 60), ("low", 5)):
        write(tmp_path / name, correct=80)
        write(tmp_path / f"{name}_shuffled", correct=correct)
    write(tmp_path / "lone", correct=80)
    out = script("evaluate.py", *(tmp_path / name for name in ("leak", "low", "lone"))).out
    said = [line_of(out, name)["shuffled-label control (n)"] for name in ("leak", "low", "lone")]
    assert said == ["60.0 % (100), ABOVE its level", "5.0 % (100), below its level", "not run"]


def test_a_control_is_found_by_its_suffix(script, tmp_path):
    write(tmp_path / "run", correct=80)
    write(tmp_path / "run_control", correct=25)
    out = script("evaluate.py", tmp_path / "run", "--control_suffix", "_control").out
    assert line_of(out, "run")["shuffled-label control (n)"] == "25.0 % (100), at its level"


def test_where_recordings_hold_some_classes_the_level_is_what_the_recording_alone_gives(script, tmp_path):
    write(tmp_path / "run", correct=80, tasks=True)
    write(tmp_path / "run_shuffled", correct=50, tasks=True)
    done = script("evaluate.py", tmp_path / "run")
    line = line_of(done.out, "run")
    assert line["task"] == "80.0 %" and line["recording alone"] == "50.0 %"
    assert line["within task (n)"] == "100.0 % (80)"  # a text without a class has no task
    assert line["shuffled-label control (n)"] == "50.0 % (100), at its level"
    assert line["control's level: 95 % of guessing"].startswith("50.0 %: 40.0 to 60.0 %")
    assert line_of(done.out, "run", "likelihood")["within task (n)"] == "100.0 % (100)"
    assert "knowing the recording" in done.out


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
    assert line_of(script("evaluate.py", ".").out, "run")["shuffled-label control (n)"] == "25.0 % (100), at its level"
