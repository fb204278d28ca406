"""A leak of each kind is written into a store or a run, and named; clean ones are left alone."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets import alignment
from datasets.recording import Trial
from datasets.store import open_store, write_store
from evaluation import audit
from evaluation.audit import store_findings
from evaluation.audit_amplitudes import amplitude_findings
from evaluation.audit_copies import copy_findings
from evaluation.audit_models import used_findings
from evaluation.audit_people import people_findings
from evaluation.audit_probes import probe_findings
from evaluation.summaries import summarise
from tests.conftest import edited, read_jsonl
from utils.checkpoints import keep, read_kept

PEOPLE = [f"A0{k}" for k in range(1, 10)]
SHAPE = 22, 200


def clean_trials(seed=0):
    """Noise with electrodes of their own amplitude, and with what real decoders live on: band power that tells the
    class.
    """
    rng, trials = np.random.default_rng(seed), []
    for person in PEOPLE:
        for run in (1, 2):
            labels = rng.permutation(np.repeat(range(4), 6))
            for k, label in enumerate(labels):
                x = rng.standard_normal(SHAPE) * np.linspace(8, 15, 22)[:, None] * rng.uniform(0.9, 1.1, (22, 1))
                x[5 * label : 5 * label + 5] *= 0.7
                trials.append(
                    (Trial(f"{person}-{run}-{k:02d}", int(label), person, "T", run, k + 1), x.astype(np.float32))
                )
    return trials


def written(path, trials):
    write_store(path, {"sfreq": 200.0, "dataset": "BCICIV2a"}, [trials])
    return path


def at(trials, change):
    """Trials whose samples are changed: change(x, trial)."""
    return [(trial, np.asarray(change(x.copy(), trial), np.float32)) for trial, x in trials]


def add(where, value):
    def change(x, trial):
        x[where] += value(trial.label)
        return x

    return change


def low_bit(x, trial):
    raw = x.view(np.uint32)
    raw[3, 17] = (raw[3, 17] & ~np.uint32(3)) | np.uint32(trial.label)
    return x


def constant_channel(x, trial):
    x[7] = 0.001 * trial.label
    return x


def copies(trials, gain=1.7):
    """Test trials that are training trials, louder and shifted."""
    train = [x for trial, x in trials if trial.subject == "A01"]
    places = [k for k, (trial, _) in enumerate(trials) if trial.subject == "A09"][:5]
    for k, x in zip(places, train, strict=False):
        trials[k] = trials[k][0], (gain * x - 3).astype(np.float32)
    return trials


def in_time(trials):
    """Labels sorted within each recording."""
    order = sorted(trials, key=lambda pair: (pair[0].subject, pair[0].run, pair[0].label))
    return [(replace(trial, trial=k % 24 + 1, key=f"{k:05d}"), x) for k, (trial, x) in enumerate(order)]


def normalised(trials):
    x = np.stack([x for _, x in trials]).astype(float)
    mean, sd = x.mean(axis=(0, 2), keepdims=True), x.std(axis=(0, 2), keepdims=True)
    return [(trial, y) for (trial, _), y in zip(trials, ((x - mean) / sd).astype(np.float32), strict=True)]


def spelled(name):
    def change(trials):
        return [
            (replace(trial, subject=name) if trial.subject == "A09" and trial.run == 2 else trial, x)
            for trial, x in trials
        ]

    return change


def numbered(trials):
    """The label is the last digit of a trial's number."""
    return [(replace(trial, trial=10 * trial.trial + trial.label), x) for trial, x in trials]


def spaced(trials):
    """The label is how many numbers are left out before a trial."""
    made, last = [], {}
    for trial, x in sorted(trials, key=lambda pair: (pair[0].subject, pair[0].session, pair[0].run, pair[0].trial)):
        recording = trial.subject, trial.session, trial.run
        last[recording] = last.get(recording, 0) + 1 + trial.label
        made.append((replace(trial, trial=last[recording]), x))
    return made


def held(x, trial):
    """A value that is held for some samples, at a place that the class tells."""
    start = 20 + 40 * trial.label
    x[:, start : start + 12] = x[:, start : start + 1]
    return x


def in_unit(factor, electrodes=slice(None), people=PEOPLE):
    """Microvolts that somebody stored in another unit: those of some electrodes, or of some people."""

    def change(x, trial):
        x[electrodes] *= factor if trial.subject in people else 1
        return x

    return lambda trials: at(trials, change)


LEAKS = {
    "volts": (in_unit(1e-6), "amplitudes"),
    "a mean": (lambda t: at(t, add(slice(4, 5), lambda k: 3.0 * k)), "means"),
    "the mean of everything": (lambda t: at(t, add(slice(None), lambda k: 0.4 * k)), "means"),
    "overall loudness": (lambda t: at(t, lambda x, trial: x * (1 + 0.05 * trial.label)), "variance"),
    "a first sample": (lambda t: at(t, add((2, 0), lambda k: 40.0 * k)), "first samples"),
    "any sample": (lambda t: at(t, add((9, 123), lambda k: 60.0 * k)), "single samples"),
    "a low bit": (lambda t: at(t, low_bit), "single samples"),
    "a constant electrode": (lambda t: at(t, constant_channel), "constant electrodes"),
    "the key": (lambda t: [(replace(trial, key=f"{trial.key}-c{trial.label}"), x) for trial, x in t], "key"),
    "time": (in_time, "order"),
    "copies": (copies, "copies"),
    "turned copies": (lambda t: copies(t, -1.0), "copies"),
    "wide letters": (spelled("\uff21\uff10\uff11"), "people"),
    "normalisation": (normalised, "normalisation"),
    "spelling": (spelled("a01 "), "people"),
    "another spelling": (spelled("A-1"), "people"),
    "a Cyrillic letter": (spelled("\u041001"), "people"),
    "a letter for a digit": (spelled("A0l"), "people"),
    "numbers of trials": (numbered, "order"),
    "gaps between trials": (spaced, "order"),
    "held values": (lambda t: at(t, held), "flat samples"),
    "no name": (spelled(""), "people"),
}  # fmt: skip


def breaches(out):
    return {line.split(":")[0].removeprefix("BREACH").strip() for line in out.splitlines() if line.startswith("BREACH")}


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_that_is_written_into_a_store_is_named(script, tmp_path, name):
    leak, check = LEAKS[name]
    done = script("evaluate.py", "--audit", written(tmp_path / "store", leak(clean_trials())))
    assert done.code == 2 and check in breaches(done.out), done.out + done.err
    assert len(done.err.splitlines()) == 1 and "breach" in done.error_line


def test_what_cannot_be_microvolts_is_named_with_its_place(tmp_path):
    def said(leak, **meta):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        some = [(trial, x) for trial, x in clean_trials() if trial.subject in ("A04", "A05")]
        write_store(path, {"sfreq": 200.0, "dataset": "BCICIV2a"} | meta, [leak(some)])
        store = open_store(path)
        trials = list(store.trials)
        (found,) = amplitude_findings(store, trials, summarise(store, trials))
        return str(found)

    assert "cannot be microvolts" in said(in_unit(1e-6)) and "as volts would be (--scale 1e+06" in said(in_unit(1e-6))
    names = [f"E{k}" for k in range(22)]
    for factor in (1e-6, 1e3):
        of_one = said(in_unit(factor, slice(3, 4)), electrodes=names)
        assert "cannot be microvolts" in of_one and "electrode E3: " in of_one and "E4" not in of_one
    assert "as nanovolts would be (--scale 0.001" in said(in_unit(1e3))
    assert "A04 T 1: 0.01" in (of_one := said(in_unit(1e-3, people=["A04"]))) and "A05" not in of_one
    assert said(in_unit(1e-6), scale_flag=1.0).startswith("notice  amplitudes: odd for microvolts")
    assert said(in_unit(1e-6), units="none").startswith("cannot  amplitudes: the trials are whitened")
    assert said(in_unit(1)).startswith("ok      amplitudes")


@pytest.mark.parametrize("seed", range(3))
def test_a_clean_store_is_left_alone_and_what_cannot_be_checked_is_said(script, tmp_path, seed):
    done = script("evaluate.py", "--audit", written(tmp_path / "store", clean_trials(seed)))
    assert done.code == 0 and not breaches(done.out) and "no breach found" in done.out, done.out
    assert done.out.count("\ncannot ") >= 3 and "band power" in done.out


def test_bits_that_are_alike_in_few_trials_of_a_class_are_chance(tmp_path):
    """Of twelve trials of two classes, one low bit in two thousand is the same in all of a class."""
    rng, kinds = np.random.default_rng(0), []
    for seed in range(8):
        trials = [(Trial(f"B01-{k}", k // 6, "B01", "1", 1, k), rng.standard_normal((3, 200))) for k in range(12)]
        write_store(tmp_path / str(seed), {"sfreq": 200.0}, [[(t, x.astype(np.float32)) for t, x in trials]])
        store = open_store(tmp_path / str(seed))
        found = probe_findings(store.trials, summarise(store, store.trials))
        kinds += [finding.kind for finding in found if finding.check == "single samples"]
    assert kinds == ["ok"] * 8


def test_a_person_may_be_in_two_splits_where_that_is_the_protocol(script, tmp_path):
    trials = [(replace(trial, session="TE"[trial.run - 1]), x) for trial, x in clean_trials()]
    path = written(tmp_path / "store", trials)
    assert script("evaluate.py", "--audit", path, "--protocol", "within:A03").code == 0
    assert script("evaluate.py", "--audit", path, "--protocol", "loso:A03").code == 0


def test_a_person_in_two_splits_of_cbramods_layout_is_named():
    trials = [Trial(f"k{k}", 0, "A01" if k % 2 else f"A0{k}", "T", 1, k) for k in range(6)]
    found = list(people_findings({"train": trials[:3], "test": trials[3:]}, "person"))
    assert [f.kind for f in found] == ["BREACH"] and "'A01' in train and in test" in found[0].words


def test_a_recording_with_one_class_is_the_block_design(tmp_path):
    trials = [(replace(trial, session=f"S{trial.label}"), x) for trial, x in clean_trials()]
    store = open_store(written(tmp_path / "store", trials))
    found = {f.check: f.kind for f in store_findings(store, {"train": store.trials, "val": [], "test": []})}
    assert found["recordings"] == "BREACH"


def test_an_exact_copy_is_named_once_and_not_as_a_copy_of_itself(tmp_path):
    trials = clean_trials()
    trials[300] = trials[300][0], trials[0][1].copy()
    store = open_store(written(tmp_path / "store", trials))
    sketch = summarise(store, store.trials).sketch
    words = [f.words for f in copy_findings(store, {"train": store.trials}, store.trials, sketch)]
    first, copy = sorted((trials[0][0].key, trials[300][0].key))
    assert words == [f"{first} (train and train) is {copy} but for gain and offset"]


def test_one_pass_gives_what_all_samples_at_once_give(tmp_path):
    store = open_store(written(tmp_path / "store", clean_trials()))
    s, x = summarise(store, store.trials), np.stack([store.read(trial) for trial in store.trials]).astype(float)
    assert np.allclose(s.mean, x.mean(axis=2), atol=1e-4) and np.allclose(s.deviation, x.std(axis=(0, 2)), rtol=1e-5)
    assert np.allclose(s.spread, x.std(axis=2), rtol=1e-4) and np.allclose(s.first, x[:, :, 0], atol=1e-4)


# ---------------------------------------------------------------- runs


@pytest.fixture
def audited(script, demo, monkeypatch):
    """The audit of runs on the demo, without the checks of the store: they take the most time, and have tests."""
    monkeypatch.setattr(audit, "store_findings", lambda *_: ())
    return lambda *runs_and_flags: script("evaluate.py", "--audit", demo.store, *runs_and_flags, "--cuda", "-1")


def test_a_clean_run_is_left_alone(script, demo, trained):
    done = script("evaluate.py", "--audit", demo.store, trained, "--cuda", "-1")
    assert "token cache were encoded anew and agree" in done.out and "was chosen by validation" in done.out
    assert not {name for name in breaches(done.out) if name == "trained"}, done.out


def test_an_epoch_that_validation_did_not_choose_is_named(audited, run):
    best = json.loads((run / "results.json").read_text())["best_epoch"]
    edited(run / "results.json", lambda r: r.update(best_epoch=best % 3 + 1))
    done = audited(run)
    assert done.code == 2 and "run" in breaches(done.out) and f"by validation (keyword) it is epoch {best}" in done.out


def test_test_scores_beside_each_epoch_and_a_second_decoding_are_named(audited, run):
    lines = [json.loads(line) | {"test": {}} for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copy(run / "decoded_test.jsonl", run / "decoded_test_epoch2.jsonl")
    out = audited(run).out
    assert "test scores stand beside epoch 1" in out and "decoded_test_epoch2.jsonl" in out


def test_a_run_on_another_store_and_scores_of_other_rows_are_named(audited, run):
    edited(run / "run.json", lambda r: r["depends_on"].update(store="0" * 64))
    edited(
        run / "results.json", lambda r: r["test"]["keyword"].update(correct=0 if r["test"]["keyword"]["correct"] else 1)
    )
    out = audited(run).out
    assert "made from another store" in out and "says other scores of keyword" in out


def test_a_checkpoint_that_has_seen_test_people_or_is_of_another_encoder_is_named(audited, run):
    best = json.loads((run / "results.json").read_text())["best_epoch"]
    path = run / f"projection_epoch{best}.pth"
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {"seen": [*checkpoint["seen"], "A09/T"], "encoder_fingerprint": "x"}, path)
    out = audited(run).out
    assert "trained on test sessions: A09/T" in out and "another encoder than the run" in out


def test_cached_tokens_of_another_store_are_named(audited, demo, run, tmp_path):
    """Another store's tokens under this store's names, with checksums that are right."""
    shutil.copytree(demo.store.parent / "token_cache", tmp_path / "cache")
    files = sorted((tmp_path / "cache").glob("tokens-*.safetensors"))
    kept = [read_kept(file) for file in files]
    assert audited(run, "--cache_dir", tmp_path / "cache").out.count("agree")
    for file, tensors in zip(files, kept, strict=True):
        keep(tensors | {"tokens": tensors["tokens"].flip(0)}, file)
    done = audited(run, "--cache_dir", tmp_path / "cache")
    assert done.code == 2 and "in the token cache is not what the encoder makes of this store" in done.out


def test_decoding_test_with_several_epochs_is_named(script, audited, demo, trained, tmp_path):
    for epoch in (2, 3):
        flags = demo.generation(trained, tmp_path / f"out{epoch}", stage="decode", generate_images=None)
        done = script("generate.py", *flags, "--projection_dir", trained / f"projection_epoch{epoch}.pth")
        assert done.code == 0, done.err
    done = audited(tmp_path / "out2", tmp_path / "out3")
    assert "the test was decoded with several epochs: projection_epoch2.pth, projection_epoch3.pth" in done.out


def test_what_is_missing_is_said_and_not_passed_over(audited, run):
    (run / "metrics.jsonl").unlink()
    edited(run / "run.json", lambda r: r.update(depends_on={}))
    edited(run / "results.json", lambda r: r["test"]["keyword"].update(correct=1))
    shutil.copy(run / "decoded_test.jsonl", run / "decoded_test_epoch2.jsonl")
    done = audited(run)
    assert done.code == 2
    for words in ("without its metrics.jsonl nobody can tell how its epoch was chosen", "from which store it was made",
                  "other scores of keyword", "decoded_test_epoch2.jsonl"):  # fmt: skip
        assert words in done.out, done.out


def test_a_baselines_epoch_and_scores_are_looked_at(script, audited, demo, tmp_path):
    flags = ("--datasets_dir", demo.store, "--foundation_dir", demo.csbrain, "--cuda", -1, "--epochs", 4)
    assert script("baseline.py", "--model", "linear_probe", "--output_dir", tmp_path / "probe", *flags).code == 0
    assert script("baseline.py", "--model", "best_constant", "--output_dir", tmp_path / "constant", *flags).code == 0
    out = audited(tmp_path / "probe", tmp_path / "constant").out
    assert "of 4 was chosen by validation (classifier)" in out and "best_constant has no epochs to choose from" in out
    assert not breaches(out) & {"probe", "constant"}, out
    best = json.loads((tmp_path / "probe/results.json").read_text())["best_epoch"]
    edited(tmp_path / "probe/results.json", lambda r: r.update(best_epoch=best % 4 + 1))
    edited(tmp_path / "constant/results.json", lambda r: r["test"]["classifier"].update(correct=1))
    assert {"probe", "constant"} <= breaches(audited(tmp_path / "probe", tmp_path / "constant").out)


def test_what_was_used_of_the_test_person_is_compared_and_causal_alignment_is_tried(few, script, tmp_path, monkeypatch):
    run = tmp_path / "run"
    flags = ["--model", "csp_lda", "--datasets_dir", few, "--downstream_dataset", "BCICIV2a", "--output_dir", run]
    assert script("baseline.py", *flags, "--align", "causal", "--band", 8, 30, "--cuda", -1).code == 0
    done = script("evaluate.py", "--audit", few, run, "--cuda", -1)
    assert (
        done.code == 0 and "used of the test person: earlier trials, unlabelled (causal), as its settings" in done.out
    )
    assert "no trial is aligned by a later one: bit-equal without them" in done.out

    # a method that takes the mean of all trials, and says that it is causal
    whole = lambda of, causal: np.repeat(of.mean(axis=0)[None], len(of), axis=0)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setitem(alignment.METHODS, "euclidean", whole)
        done = script("evaluate.py", "--audit", few, run, "--cuda", -1)
    assert done.code == 2 and "are aligned by what comes after" in done.out

    rows = [
        {k: v for k, v in row.items() if k not in ("of", "checksum")} for row in read_jsonl(run / "decoded_test.jsonl")
    ]
    text = "".join(json.dumps(row | {"uses": "nothing"}) + "\n" for row in rows)
    (run / "decoded_test.jsonl").write_text(text)
    done = script("evaluate.py", "--audit", few, run, "--cuda", -1)
    assert done.code == 2 and "its rows say 'nothing' was used of the test person, its settings 'earlier" in done.out


def test_a_rhythm_that_makes_all_of_a_few_electrodes_louder_is_no_written_loudness(tmp_path):
    """Eyes that are open and closed, on a headband: alpha at all four electrodes. And the same power in all bands."""
    rng, rhythm, gain = np.random.default_rng(0), [], []
    for person, k in ((person, k) for person in PEOPLE for k in range(40)):
        x, label = np.cumsum(rng.standard_normal((4, 400)), axis=1), k % 2
        x = 12 * (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True) + 4 * rng.standard_normal((4, 400))
        alpha = np.sin(2 * np.pi * (10 + 0.3 * rng.standard_normal()) * np.arange(400) / 200 + rng.uniform(0, 6))
        alpha = alpha * rng.uniform(0.8, 1.2, (4, 1)) * (18 if label else 4)
        trial = Trial(f"{person}-{k:02d}", label, person, "T", 1 + k // 20, k % 20 + 1)
        rhythm.append((trial, (x + alpha).astype(np.float32)))
        gain.append((trial, ((x + alpha / 4) * (1.5 if label else 1.0)).astype(np.float32)))
    for name, trials, kind in (("rhythm", rhythm, "notice"), ("gain", gain, "BREACH")):
        write_store(tmp_path / name, {"sfreq": 200.0}, [trials])
        store = open_store(tmp_path / name)
        found = [f for f in probe_findings(store.trials, summarise(store, store.trials)) if f.check == "variance"]
        assert [f.kind for f in found] == [kind], found


def test_what_a_geometry_has_used_is_no_breach(tmp_path):
    whole = "all trials, unlabelled (transductive)"

    def run(uses, **argument):
        rows = [SimpleNamespace(uses=uses)]
        return SimpleNamespace(name="run", rows=rows, uses=uses, argument=argument, record={}, folder=tmp_path)

    test = SimpleNamespace(mode="test", uses="nothing", align="none")
    kinds = [next(used_findings(of, [test])).kind for of in (run(whole, geometry="csls"), run(whole), run("nothing"))]
    assert kinds == ["ok", "BREACH", "ok"]
