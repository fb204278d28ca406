import json

import pytest


def write(folder, correct, n=100, n_classes=4):
    folder.mkdir(parents=True)
    rows = [{"true_label": k % n_classes, "true_name": "abcd"[k % n_classes], "subject": f"A0{8 + k % 2}",
             "probabilities": [1 / n_classes] * n_classes, "likelihood_label": k % n_classes,
             "keyword_label": k % n_classes if k < correct else -1} for k in range(n)]  # fmt: skip
    (folder / "decoded_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_table_has_n_interval_chance_p_and_the_twin(script, tmp_path):
    write(tmp_path / "run", correct=80)
    write(tmp_path / "run_shuffled", correct=27)
    done = script("evaluate.py", tmp_path / "run", "--output_dir", tmp_path / "tables")
    assert done.code == 0, done.err
    row = next(line for line in done.out.splitlines() if "| keyword |" in line)
    assert "80.0 % | 100 | 71.1 to 86.7 % | 25 % | < 0.0001 | 27.0 % (100), at chance" in row
    assert "A08 80.0 % (n = 50), A09 80.0 % (n = 50)" in done.out
    assert (tmp_path / "tables/confusion_run.png").exists() and row in (tmp_path / "tables/table.md").read_text()


def test_a_twin_off_chance_and_a_missing_twin_are_said(script, tmp_path):
    write(tmp_path / "leak", correct=80)
    write(tmp_path / "leak_shuffled", correct=60)
    write(tmp_path / "lone", correct=80)
    out = script("evaluate.py", tmp_path / "leak", tmp_path / "lone").out
    assert "60.0 % (100), NOT at chance" in out and "not run" in out


@pytest.mark.parametrize("made", [False, True])
def test_nothing_to_score_is_one_line(script, tmp_path, made):
    (tmp_path / "run").mkdir()
    if made:
        (tmp_path / "run/decoded.jsonl").write_text("")
    done = script("evaluate.py", tmp_path / "run")
    assert done.code == 2 and str(tmp_path / "run") in done.error_line
