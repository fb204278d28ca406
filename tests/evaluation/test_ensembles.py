import json

import numpy as np
import pytest

from tests.conftest import read_jsonl
from tests.test_evaluate import line_of

PEOPLE = ("P1", "P2")


def run(folder, seed=0, protocol="published", people=PEOPLE, n=80, noise=1.0, shuffled=False, align="none", **more):
    """Rows of a run whose probabilities are right more often than not, with its record."""
    rng, rows = np.random.default_rng((seed, shuffled)), []
    for k in range(n):
        label = int(np.random.default_rng((k, shuffled)).integers(2))
        score = (0.0 if shuffled else 0.7) * (1 if label else -1) + noise * rng.standard_normal()
        p = 1 / (1 + np.exp(-score))
        of = [round(1 - p, 6), round(p, 6)]
        head = {"label": int(p > 0.5), "chance": 0.5, "probabilities": of}
        keyword = {"label": int(p > 0.5), "chance": 0.5, "probabilities": None}
        uses = {"none": "nothing", "session": "all trials, unlabelled (transductive)"}[align]
        rows.append({"index": k, "subject": people[k % len(people)], "true_label": label, "true_name": "ab"[label],
                     "readouts": {"keyword": keyword, "head": head}, "text": "it is a", "uses": uses})  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "decoded_test.jsonl").write_text("".join(json.dumps(row | more) + "\n" for row in rows))
    arguments = {"seed": seed, "protocol": protocol, "shuffle_labels": shuffled, "align": align}
    record = {"arguments": arguments, "fixed": arguments, "depends_on": {"store": "s"}}
    (folder / "run.json").write_text(json.dumps(record))


def right(folder):
    return np.mean(
        [r["readouts"]["head"]["label"] == r["true_label"] for r in read_jsonl(folder / "decoded_test.jsonl")]
    )


def test_an_ensemble_is_a_run_of_the_mean_of_probabilities_and_better_than_its_members(script, tmp_path):
    for seed in range(5):
        run(tmp_path / f"seed{seed}", seed=seed)
        run(tmp_path / f"seed{seed}_shuffled", seed=seed, shuffled=True)
    places = [tmp_path / f"seed{seed}{end}" for seed in range(5) for end in ("", "_shuffled")]
    done = script("evaluate.py", "--ensemble", tmp_path / "mean", *places)
    assert done.code == 0, done.err
    rows = read_jsonl(tmp_path / "mean/decoded_test.jsonl")
    members = [read_jsonl(tmp_path / f"seed{seed}/decoded_test.jsonl") for seed in range(5)]
    for k, made in enumerate(rows):
        assert set(made["readouts"]) == {"head"} and made["text"] == ""  # a text has no mean
        p = np.mean([member[k]["readouts"]["head"]["probabilities"] for member in members], axis=0)
        assert made["readouts"]["head"]["probabilities"] == pytest.approx(p, abs=2e-6)
    assert right(tmp_path / "mean") > np.mean([right(tmp_path / f"seed{seed}") for seed in range(5)])
    line = line_of(done.out, "mean", "head")
    assert line["n"] == "80" and line["shuffled-label control (n): its level"].startswith(
        f"{100 * right(tmp_path / 'mean_shuffled'):.1f} %"
    )
    other = tmp_path / "seed9_shuffled"
    run(other, seed=9, shuffled=True, n=79)
    again = script("evaluate.py", "--ensemble", tmp_path / "more", *places, other)
    assert (
        again.code == 0 and "no ensemble of these controls" in again.out and not (tmp_path / "more_shuffled").exists()
    )
    again = script("evaluate.py", "--ensemble", tmp_path / "mean", *places, tmp_path / "mean")  # no ensemble of itself
    assert again.code == 0 and rows == read_jsonl(tmp_path / "mean/decoded_test.jsonl")


def test_folds_have_an_ensemble_each_and_one_line(script, tmp_path):
    for person in ("P1", "P2", "P3", "P4"):
        for seed in range(2):
            run(tmp_path / f"loso-{person}-s{seed}", seed=seed, protocol=f"loso:{person}", people=(person,), n=20)
    done = script("evaluate.py", "--ensemble", tmp_path / "mean", *tmp_path.glob("loso-*"))
    assert done.code == 0, done.err
    made = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("mean"))
    assert made == ["mean-P1", "mean-P2", "mean-P3", "mean-P4"] and "mean-P (4 folds)" in done.out


def test_what_was_used_of_the_test_person_is_the_most_that_a_member_used(script, tmp_path):
    run(tmp_path / "plain")
    run(tmp_path / "aligned", seed=1, align="session")
    done = script("evaluate.py", "--ensemble", tmp_path / "mean", tmp_path / "plain", tmp_path / "aligned")
    assert {row["uses"] for row in read_jsonl(tmp_path / "mean/decoded_test.jsonl")} == {
        "all trials, unlabelled (transductive)"
    }
    for name, used in (("plain", "nothing"), ("aligned", "all trials, unlabelled (transductive)"), ("mean", "all")):
        assert line_of(done.out, name, "head")["used of the test person"].startswith(used)
    assert "notice: mean is of runs that used other things of the test person (nothing, all trials" in done.out
    assert "align" not in json.loads((tmp_path / "mean/run.json").read_text())["arguments"]
    # a comparison of two conditions says so
    assert "plain, keyword (nothing)" in done.out
    plain = script("evaluate.py", tmp_path / "plain")
    assert "used of the test person" not in plain.out


def test_rows_of_before_that_do_not_say_what_was_used_have_a_mean(script, tmp_path):
    for seed in range(2):
        run(tmp_path / f"s{seed}", seed=seed, protocol="within:P1", uses="")
    done = script("evaluate.py", "--ensemble", tmp_path / "mean", tmp_path / "s0", tmp_path / "s1")
    assert done.code == 0, done.err
    assert {row["uses"] for row in read_jsonl(tmp_path / "mean/decoded_test.jsonl")} == {"other trials, labelled"}


@pytest.mark.parametrize("other, message", [
    ({"n": 40}, "two was tested on other trials, or labels, than one"),
    ({"people": ("P3", "P4")}, "two was tested on other trials"),
    ({"protocol": "loso:P1"}, "only one was tested under --protocol published"),
])  # fmt: skip
def test_runs_that_have_no_mean_are_refused(script, tmp_path, other, message):
    run(tmp_path / "one")
    run(tmp_path / "two", seed=1, **other)
    done = script("evaluate.py", "--ensemble", tmp_path / "mean", tmp_path / "one", tmp_path / "two")
    assert done.code == 2 and message in done.error_line and not (tmp_path / "mean").exists()


def test_no_other_folder_is_written_over(script, tmp_path):
    for seed in range(2):
        run(tmp_path / f"s{seed}", seed=seed)
    before = (tmp_path / "s0/run.json").read_bytes()
    done = script("evaluate.py", "--ensemble", tmp_path / "s0", tmp_path / "s0", tmp_path / "s1")
    assert done.code == 2 and "holds something else" in done.error_line
    assert (tmp_path / "s0/run.json").read_bytes() == before
