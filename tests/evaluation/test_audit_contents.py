"""Leaks that keep names and counts as they were: copies that were changed, pictures, targets, files of a run."""

import json
import re
import shutil
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.alignment import USES
from datasets.description import load_description
from datasets.recording import Trial
from datasets.store import open_store, write_store
from datasets.trials import load_splits
from evaluation import audit_copies
from evaluation.audit import splits_of, store_findings
from evaluation.audit_amplitudes import whitening_findings
from evaluation.audit_images import caption_findings, image_findings
from evaluation.audit_models import _drawn, decoded_findings, target_findings, used_findings
from evaluation.audit_probes import probe_findings
from evaluation.audit_run import run_findings
from evaluation.decoded_runs import read_run
from evaluation.summaries import summarise
from stages.rows import read_rows, write_rows
from stages.scores import score_rows
from tests.conftest import edited
from tests.seen_images import SCRIPT, things_store, training
from utils.checkpoints import keep, read_kept

BCIC = load_description("BCICIV2a")
PEOPLE = [f"A0{k}" for k in range(1, 10)]


def breaches(findings):
    """Check → the words of its breaches."""
    found = defaultdict(str)
    for finding in findings:
        if finding.kind == "BREACH":
            found[finding.check] += f"{finding.words}\n"
    return found


# ---------------------------------------------------------------- signals


def people_trials(seed=0, people=PEOPLE):
    """Noise in which a person's electrodes have amplitudes of their own, and a class changes some of them."""
    rng, trials = np.random.default_rng(seed), []
    for person in people:
        own = 10 * np.exp(0.3 * rng.standard_normal((22, 1)))
        for session in "TE":
            for k, label in enumerate(rng.permutation(np.repeat(range(4), 6))):
                x = rng.standard_normal((22, 200)) * own
                x[5 * label : 5 * label + 5] *= 0.8
                trial = Trial(f"{person}-{session}-{k:02d}", int(label), person, session, 1, k + 1)
                trials.append((trial, x.astype(np.float32)))
    return trials


def copied(change):
    """Five training trials, made of test trials."""

    def leak(trials):
        rng, test = np.random.default_rng(1), [x for trial, x in trials if trial.subject == "A09"]
        places = [k for k, (trial, _) in enumerate(trials) if trial.subject == "A02"][3:8]
        for k, x in zip(places, test[7:], strict=False):
            trials[k] = trials[k][0], np.asarray(change(x.copy(), trials[k][1], rng), np.float32)
        return trials

    return leak


def half(x, other, rng):
    kept = rng.permutation(22)[:11]
    other = other.copy()
    other[kept] = x[kept]
    return other


def smoothed(x, other, rng):
    return np.apply_along_axis(np.convolve, 1, x, np.ones(4) / 4, mode="same")


def whitened(by, people=PEOPLE, ridge=0.0):
    """Covariances made the identity, of all trials that `by` puts together; or of those of some people alone."""

    def leak(trials):
        made, groups = [], {by(trial) for trial, _ in trials}
        for group in sorted(groups):
            own = [(trial, x) for trial, x in trials if by(trial) == group]
            x = np.stack([x - x.mean(axis=1, keepdims=True) for _, x in own]).astype(float)
            some = x[[trial.subject in people for trial, _ in own]]
            covariance = np.einsum("nct,ndt->cd", some, some) / (len(some) * x.shape[2])
            covariance += ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
            values, vectors = np.linalg.eigh(covariance)
            w = (vectors / np.sqrt(values)) @ vectors.T
            made += [(trial, (w @ y).astype(np.float32)) for (trial, _), y in zip(own, x, strict=True)]
        return made

    return leak


def renamed(trials):
    """The second session of a test person is a training person's of another name."""
    names = {("A09", "E"): "A04", ("A04", "E"): "A04", ("A04", "T"): "A04"}
    kept = [(trial, x) for trial, x in trials if trial.subject != "A04"]
    return [(replace(t, subject=names.get((t.subject, t.session), t.subject)), x) for t, x in kept]


SIGNALS = {
    "shifted by some samples": (
        copied(lambda x, y, rng: np.concatenate([x[:, 9:], y[:, :9]], axis=1)),
        "changed copies",
    ),
    "smoothed": (copied(smoothed), "changed copies"),
    "half of the electrodes": (copied(half), "changed copies"),
    "electrodes in another order": (copied(lambda x, y, rng: x[rng.permutation(22)]), "changed copies"),
    "turned round in time": (copied(lambda x, y, rng: x[:, ::-1]), "changed copies"),
    "an electrode of zeros": (copied(lambda x, y, rng: np.r_[x[:5], 0 * x[5:6], x[6:]][:, ::-1]), "changed copies"),
    "another reference": (copied(lambda x, y, rng: x - x.mean(axis=0)), "changed copies"),
    "mixed with the trial that was there": (copied(lambda x, y, rng: 0.7 * x + 0.3 * y), "changed copies"),
    "trials in another order": (copied(lambda x, y, rng: x), "copies"),
    "whitened by all people": (whitened(lambda trial: ""), "whitening"),
    "whitened by test people": (whitened(lambda trial: "", PEOPLE[7:]), "whitening"),
    "whitened by all but validation's people": (whitened(lambda trial: "", PEOPLE[:5] + PEOPLE[7:]), "whitening"),
    "whitened by validation's and test people": (whitened(lambda trial: "", PEOPLE[5:]), "whitening"),
    "the same person under two names": (renamed, "likeness"),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_that_is_in_training_and_test_is_named(tmp_path, name):
    leak, check = SIGNALS[name]
    write_store(tmp_path, {"sfreq": 200.0, "dataset": "BCICIV2a"}, [leak(people_trials())])
    store = open_store(tmp_path)
    found = breaches(_without_probes(store))
    assert set(found) <= {check, "normalisation", "changed copies"} and check in found, found


def _without_probes(store, protocol="published"):
    from evaluation import audit

    with pytest.MonkeyPatch.context() as patch:  # they take the most time, and have tests of their own
        patch.setattr(audit, "probe_findings", lambda *_: ())
        return list(store_findings(store, splits_of(store, BCIC, protocol), ("person",)))


def test_one_person_who_was_whitened_by_test_trials_among_others_is_named(tmp_path):
    """Within people: of all others the training session whitened, of A05 both sessions."""
    trials = []
    for trial, x in people_trials():
        trials.append((replace(trial, run=2 if trial.session == "E" else 1), x))
    made = []
    for person in PEOPLE:
        own = [(trial, x) for trial, x in trials if trial.subject == person]
        fitted = own if person == "A05" else [pair for pair in own if pair[0].session == "T"]
        x = np.concatenate([x - x.mean(axis=1, keepdims=True) for _, x in fitted], axis=1).astype(float)
        values, vectors = np.linalg.eigh(x @ x.T / x.shape[1])
        w = (vectors / np.sqrt(values)) @ vectors.T
        made += [(t, (w @ (y - y.mean(axis=1, keepdims=True))).astype(np.float32)) for t, y in own]
    write_store(tmp_path, {"sfreq": 200.0, "dataset": "BCICIV2a"}, [made])
    store = open_store(tmp_path)
    mode_of = {trial.key: "train" if trial.session == "T" else "test" for trial in store.trials}
    (found,) = whitening_findings(store, summarise(store, store.trials, mode_of))
    assert found.kind == "BREACH" and "test trials among them" in found.words, found


def test_a_person_whose_other_name_is_louder_is_noticed(tmp_path):
    trials = [(trial, x * (1.4 if trial.subject == "A04" else 1)) for trial, x in renamed(people_trials())]
    write_store(tmp_path, {"sfreq": 200.0, "dataset": "BCICIV2a"}, [trials])
    said = [f.words for f in _without_probes(open_store(tmp_path)) if f.check == "likeness" and f.kind != "ok"]
    assert any("A04 and A09 look like one person" in words for words in said), said


def test_a_response_that_electrodes_share_for_some_time_was_not_written(tmp_path):
    """A steady response of a class that is locked to the cue; a sample that somebody wrote stands alone."""
    t = np.arange(200) / 200
    for locked in (True, False):
        trials = []
        for trial, x in people_trials(people=PEOPLE[:2]):
            if locked:
                x = x + 25 * np.sin(2 * np.pi * (8 + 2 * trial.label) * t)
            else:
                x[9, 123] += 120 * trial.label
            trials.append((trial, x.astype(np.float32)))
        write_store(tmp_path / str(locked), {"sfreq": 200.0, "dataset": "BCICIV2a"}, [trials])
        store = open_store(tmp_path / str(locked))
        found = probe_findings(store.trials, summarise(store, store.trials))
        (kind,) = (finding.kind for finding in found if finding.check == "single samples")
        assert kind == ("notice" if locked else "BREACH")


def test_an_amplifier_that_reaches_its_ends_was_not_made_equal(tmp_path):
    trials = [(trial, np.clip(x, -15, 15)) for trial, x in people_trials()]
    write_store(tmp_path, {"sfreq": 200.0, "dataset": "BCICIV2a"}, [trials])
    assert "normalisation" not in breaches(_without_probes(open_store(tmp_path)))


@pytest.mark.parametrize("seed", range(2))
def test_clean_signals_are_left_alone(tmp_path, seed):
    write_store(tmp_path, {"sfreq": 200.0, "dataset": "BCICIV2a"}, [people_trials(seed)])
    found = _without_probes(open_store(tmp_path))
    assert not [str(f) for f in found if f.kind in ("BREACH", "notice")]
    assert {f.check for f in found} >= {"changed copies", "likeness", "whitening"}


def test_one_blink_is_no_copy_of_another(monkeypatch):
    rng, t = np.random.default_rng(0), np.arange(400) / 200

    def trial(at=None):
        blink = 0 if at is None else 120 * np.exp(-(((t - at) / 0.06) ** 2)) * np.linspace(1, 0.2, 22)[:, None]
        return (10 * rng.standard_normal((22, 400)) + blink).astype(np.float32)

    flat = np.mean([np.abs(audit_copies._spectrum(trial())) for _ in range(20)], axis=0)
    one, other = trial(0.8), trial(1.1)
    copy = np.concatenate([one[:, 40:], other[:, :40]], axis=1)
    likeness = lambda a, b: audit_copies._at_any_lag(a, b, flat, 200.0)[0]  # noqa: E731
    assert likeness(one, other) < audit_copies.CHANGED and likeness(one, copy) > audit_copies.CHANGED
    monkeypatch.setattr(audit_copies, "LOUDEST", 1e9)
    assert likeness(one, other) > audit_copies.CHANGED  # each frequency as loud as it is


def test_whitening_by_people_is_a_breach_where_a_person_trains_and_tests(tmp_path):
    write_store(tmp_path, {"sfreq": 200.0, "dataset": "BCICIV2a"}, [whitened(lambda t: t.subject)(people_trials())])
    store = open_store(tmp_path)
    kinds = {
        protocol: {f.check: f.kind for f in _without_probes(store, protocol)}
        for protocol in ("published", "within:A03")
    }
    assert kinds["published"]["whitening"] == "notice" and kinds["within:A03"]["whitening"] == "BREACH"


@pytest.mark.parametrize(("people", "ridge", "kind", "words"), [
    (PEOPLE, 0.01, "cannot", "whose trials whitened these"),
    (PEOPLE[:5], 0, "ok", "whitened by the training trials of all people"),
    (PEOPLE[:7], 0, "ok", "whitened by the train and val trials of all people"),
])  # fmt: skip
def test_whitening_that_was_shrunk_is_not_said_to_be_none_and_one_of_training_is_no_leak(
    tmp_path, people, ridge, kind, words
):
    leak = whitened(lambda trial: "", people, ridge)
    write_store(tmp_path, {"sfreq": 200.0, "dataset": "BCICIV2a"}, [leak(people_trials())])
    (found,) = [f for f in _without_probes(open_store(tmp_path)) if f.check == "whitening"]
    assert found.kind == kind and words in found.words, found


@pytest.mark.parametrize(("fitted", "kind"), [(("train",), "ok"), (("test",), "BREACH"), (("train", "test"), "BREACH")])
def test_shrunk_whitening_of_sessions_is_known_by_the_trials_whose_covariance_is_nearest_to_the_identity(fitted, kind):
    rng, moments = np.random.default_rng(0), {}
    for person in PEOPLE[:2]:
        x = {
            mode: rng.standard_normal((22, 4000)) * np.exp(0.3 * rng.standard_normal((22, 1)))
            for mode in ("train", "test")
        }
        some = np.concatenate([x[mode] for mode in fitted], axis=1)
        values, vectors = np.linalg.eigh(some @ some.T / some.shape[1] + 0.05 * np.eye(22))  # shrunk
        for mode, of_mode in x.items():
            raw = 40 * np.cov((vectors / np.sqrt(values)) @ vectors.T @ of_mode)
            moments[person, "1", "1", mode] = 40, np.zeros(22), raw, raw
    store = SimpleNamespace(meta={"units": "no unit"})
    (found,) = whitening_findings(store, SimpleNamespace(moments=moments))
    assert found.kind == kind and "distance of their covariance" in found.words, found


# ---------------------------------------------------------------- classes in blocks


def block_trials(order, drift=0.0, seed=0):
    """Two people or more, who see 6 trials of each class in a row; each block has loudnesses of its own."""
    rng, trials = np.random.default_rng(seed), []
    for person, classes in zip(PEOPLE, order, strict=False):
        for number, label in enumerate(np.repeat(classes, 6).tolist()):
            own = np.exp(drift * np.random.default_rng((seed, int(person[1:]), label)).standard_normal((22, 1)))
            x = (10 * own * rng.standard_normal((22, 200))).astype(np.float32)
            trials.append((Trial(f"{person}-{number:03d}", label, person, "T", 1, number + 1), x))
    return trials


def probed(path, trials):
    write_store(path, {"sfreq": 200.0, "dataset": "BCICIV2a"}, [trials])
    store = open_store(path)
    return {f.check: f for f in probe_findings(store.trials, summarise(store, store.trials))}


def test_blocks_of_two_people_that_fall_together_are_no_leak_and_an_order_that_all_share_is_one(tmp_path):
    some = [list(range(8)), [0, 1, 2, 3, 4, 6, 7, 5]]  # five of eight blocks at the same place
    found = probed(tmp_path / "two", block_trials(some))
    assert {f.kind for f in found.values()} == {"ok"}, [str(f) for f in found.values()]
    found = probed(tmp_path / "all", block_trials([list(range(8))] * 4))
    assert found["order"].kind == "BREACH" and "in blocks" in found["order"].words


def test_blocks_that_drift_within_a_person_are_noticed(tmp_path):
    rng = np.random.default_rng(0)
    found = probed(tmp_path, block_trials([rng.permutation(8).tolist() for _ in range(3)], drift=0.3))
    assert found["blocks"].kind == "notice" and "time tells the class as well" in found["blocks"].words
    assert not breaches(found.values())


# ---------------------------------------------------------------- pictures and captions


def photo(seed):
    """Colours that change smoothly, as photos' do."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((120, 90), Image.Resampling.BICUBIC)


def pictures(folder):
    """Twelve pictures that train and four that test, under the names of their concepts."""
    images = {"train": [f"training_images/{k:05d}_t/t{k}.png" for k in range(12)]}
    images["test"] = [f"test_images/{k:05d}_u/u{k}.png" for k in range(4)]
    for number, image in enumerate(sum(images.values(), [])):
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        photo(number).save(folder / image)
    return {mode: [Trial(image, 0, "sub-01", "1", 1, 1, image) for image in of] for mode, of in images.items()}


def cut(picture, share):
    """The middle of a picture, of a share of its edges."""
    margins = [round((1 - share) / 2 * size) for size in picture.size]
    return picture.crop((*margins, picture.width - margins[0], picture.height - margins[1]))


@cache
def detailed(seed):
    """As `photo`, with finer details, in a photo's size."""
    rng, whole = np.random.default_rng(seed), np.zeros((360, 480, 3))
    for places in (4, 8, 16, 32, 64):
        of_size = rng.integers(0, 256, (places, places, 3), dtype=np.uint8)
        whole += np.asarray(Image.fromarray(of_size).resize((480, 360), Image.Resampling.BICUBIC), float) / places**0.5
    return Image.fromarray((whole / whole.max() * 255).astype(np.uint8))


PICTURES = {
    "the same bytes": lambda path, picture: picture.save(path),
    "resized": lambda path, picture: picture.resize((200, 150)).save(path),
    "encoded anew": lambda path, picture: picture.save(path, format="JPEG", quality=60),
    "mirrored": lambda path, picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path),
    "turned": lambda path, picture: picture.rotate(90, expand=True).save(path),
    "cut to its middle": lambda path, picture: picture.crop((6, 5, 114, 85)).save(path),
    "cut a little": lambda path, picture: picture.crop((3, 2, 117, 88)).save(path),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_test_picture_under_a_training_pictures_name_is_named(tmp_path, name):
    splits = pictures(tmp_path)
    assert not breaches(image_findings(splits, tmp_path, False))
    PICTURES[name](tmp_path / splits["train"][5].image, photo(13))
    found = breaches(image_findings(splits, tmp_path, False))
    assert "u1.png" in found["images"] and "t5.png" in found["images"]
    assert not breaches(image_findings(splits, tmp_path, True))  # a protocol that shows them again
    (missing,) = image_findings(splits, None, False)
    assert missing.kind == "cannot"


def test_a_picture_in_doubt_is_noticed_and_one_that_all_see_is_no_leak(tmp_path):
    splits = pictures(tmp_path)
    noise = np.random.default_rng(0).integers(-20, 21, (90, 120, 3))
    doubtful = np.clip(np.asarray(photo(13), int) + np.repeat(np.repeat(noise[::6, ::6], 6, 0), 6, 1), 0, 255)
    Image.fromarray(doubtful.astype(np.uint8)).save(tmp_path / splits["train"][5].image)
    found = [f for f in image_findings(splits, tmp_path, False) if f.kind != "ok"]
    assert [f.kind for f in found] == ["notice"] and found[0].words.startswith("perhaps "), found


MIRROR = Image.Transpose.FLIP_LEFT_RIGHT
CHANGED = {f"cut to {share}": lambda p, share=share: cut(p, share) for share in (0.97, 0.93, 0.87, 0.83)}
CHANGED |= {f"of {edge} pixels": lambda p, edge=edge: p.resize((edge, edge)) for edge in (32, 20)}
CHANGED |= {
    "mirrored and cut": lambda p: cut(p.transpose(MIRROR), 0.85),
    "turned and cut": lambda p: cut(p.rotate(90, expand=True), 0.9),
}


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("changed", ["train", "test"])
def test_a_picture_of_details_is_found_cut_anywhere_small_or_mirrored_in_either_split(tmp_path, changed, name):
    images = {
        "train": [f"training_images/t{k}.png" for k in range(3)],
        "test": [f"test_images/u{k}.png" for k in range(3)],
    }
    for part, offset in (("train", 0), ("test", 3)):
        (tmp_path / images[part][0]).parent.mkdir()
        for k, image in enumerate(images[part]):
            detailed(offset + k).save(tmp_path / image)
    one, other = (images["train"][0], 3) if changed == "train" else (images["test"][0], 0)
    splits = {mode: [Trial(image, 0, "sub-01", "1", 1, 1, image) for image in of] for mode, of in images.items()}
    assert not breaches(image_findings(splits, tmp_path, False))
    CHANGED[name](detailed(other)).save(tmp_path / one)
    found = breaches(image_findings(splits, tmp_path, False))["images"]
    assert "u0.png (test)" in found and "t0.png (trained on)" in found and found.count("the same picture") == 1


@pytest.mark.parametrize(("caption", "kind"), [("a photo of a {}", "notice"), ("{id}", "BREACH"), ("it is red", "ok")])
def test_captions_that_say_the_class_are_named(tmp_path, caption, kind):
    classes = ("dog", "cup", "chair")
    images = {f"n0000000{label}/{k}.JPEG": label for label in range(3) for k in range(4)}
    lines = [{"image": i, "caption": caption.format(classes[k], id=i.split("/")[0])} for i, k in images.items()]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    splits = {"train": [Trial(image, label, "S00", "1", 1, 1, image) for image, label in images.items()]}
    assert [f.kind for f in caption_findings(tmp_path / "captions.jsonl", classes, splits)] == [kind]


@pytest.mark.parametrize(("dataset", "caption", "kind"), [
    ("THINGS", "class {label}", "BREACH"),
    ("THINGS", "Label: {label:02d}", "BREACH"),
    ("THINGS", "category no. {label}", "BREACH"),
    ("THINGS", "labels: {label}", "BREACH"),
    ("THINGS", "class_id={label}", "BREACH"),
    ("THINGS", "it has \uff49\uff44 {label}", "BREACH"),
    ("THINGS", "a c\u200bup, an aard\u00advark or a \uff43hair", "ok"),
    ("THINGS", "a {hidden} on grass", "notice"),
    ("THINGS", "{label} of them, in a class 9 train", "ok"),
    ("THINGS", "a photo, {label:05d}", "BREACH"),
    ("THINGS", "{stem}.jpg", "BREACH"),
    ("THINGS", "{joined}", "BREACH"),
    ("THINGS", "two {name}s on grass", "notice"),
    ("THINGS", "in 2019, 12 by 34567", "ok"),
    ("own", "before an old house, 12 people", "ok"),
    ("own", "it is house1 in the row", "BREACH"),
    ("EEG-ImageNet", "{digits}", "BREACH"),
    ("EEG-ImageNet", "label:{folder}x", "BREACH"),
])  # fmt: skip
def test_an_identifier_in_a_caption_is_a_breach_however_it_is_written(tmp_path, dataset, caption, kind):
    classes = ("aardvark", "cup", "chair")
    folders = {
        "THINGS": [f"training_images/{k:05d}_{name}" for k, name in enumerate(classes)],
        "EEG-ImageNet": [f"n0210666{k}" for k in range(3)],
        "own": ["house_1"] * 3,
    }[dataset]
    images = {f"{folder}/{classes[k]}_{j:02d}b.jpg": k for k, folder in enumerate(folders) for j in range(4)}
    lines = []
    for image, k in images.items():
        stem, folder = Path(image).stem, Path(image).parent.name
        hidden = "\u00ad".join(classes[k])
        known = {
            "hidden": hidden,
            "stem": stem,
            "joined": stem.replace("_", ""),
            "folder": folder,
            "digits": folder[1:],
        }
        lines.append({"image": image, "caption": caption.format(label=k, name=classes[k], **known)})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    splits = {"train": [Trial(image, label, "S00", "1", 1, 1, image) for image, label in images.items()]}
    assert [f.kind for f in caption_findings(tmp_path / "captions.jsonl", classes, splits)] == [kind]


# ---------------------------------------------------------------- a text run's files


def accuracy(run):
    edited(run / "results.json", lambda r: r["test"]["keyword"].update(accuracy=0.9))


def interval(run):
    edited(run / "results.json", lambda r: r["test"]["likelihood"].update(p=1e-9))


def validation(run):
    edited(run / "results.json", lambda r: r["val"]["keyword"].update(correct=99))


def another_epoch(run):
    """Another epoch wins, in metrics.jsonl and in results.json."""
    best = json.loads((run / "results.json").read_text())["best_epoch"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        score, wins = line["val"]["keyword"], line["epoch"] == best % 3 + 1
        score |= {"correct": score["n"] if wins else 0, "accuracy": float(wins)}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    edited(run / "results.json", lambda r: r.update(best_epoch=best % 3 + 1, val=lines[best % 3]["val"]))


def accuracy_of_an_epoch(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[0]["val"]["likelihood"]["accuracy"] = 0.99
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def best_checkpoint(run):
    best = json.loads((run / "results.json").read_text())["best_epoch"]
    return run / f"projection_epoch{best}.pth"


def nothing_seen(run):
    path = best_checkpoint(run)
    torch.save(torch.load(path, weights_only=True) | {"seen": []}, path)


def other_weights(run):
    path = best_checkpoint(run)
    content = torch.load(path, weights_only=True)
    content["projection"] = {name: 1.01 * value for name, value in content["projection"].items()}
    torch.save(content, path)


def an_answer(run):
    """An answer that its own probabilities do not give."""
    rows = read_rows(run / "decoded_test.jsonl")
    for row in rows[:5]:
        row.readouts["likelihood"].label = int(np.argmin(row.readouts["likelihood"].probabilities))
    _write_alike(run, rows)


def _write_alike(run, rows):
    """Rows, and results.json and the model card with their scores."""
    write_rows(rows, run / "decoded_test.jsonl")
    scores = {name: score.as_dict() for name, score in score_rows(rows).items()}
    edited(run / "results.json", lambda r: r["test"].update(scores))
    (run / "README.md").unlink()


def rows_alone(run):
    """All answers right; results.json as it was."""
    rows = read_rows(run / "decoded_test.jsonl")
    for row in rows:
        of = row.readouts["likelihood"]
        of.label, of.probabilities = row.true_label, [float(k == row.true_label) for k in range(4)]
    write_rows(rows, run / "decoded_test.jsonl")


def table(run):
    results = json.loads((run / "results.json").read_text())["test"]["keyword"]
    (run.parent / "results.csv").write_text(f"run,readout,accuracy,n\nrun,keyword,0.99,{results['n']}\n")


def said_to_be_decoded(run):
    """What a folder of decoded trials says, in a training run's record."""
    accuracy(run)
    edited(run / "run.json", lambda r: r.update(mapper="x"))


def in_checkpoint(**what):
    def change(run):
        path = best_checkpoint(run)
        torch.save(torch.load(path, weights_only=True) | what, path)

    return change


def remembered(run):
    content = torch.load(run / "last.pth", weights_only=True)
    torch.save(content | {"history": [{("a", "tuple"): 1}]}, run / "last.pth")


def card(before, after):
    def change(run):
        text = (run / "README.md").read_text()
        assert before in text
        (run / "README.md").write_text(text.replace(before, after, 1))

    return change


def interval_of_the_card(run):
    interval = r"(\| test \| keyword \| [^|]+ \| \d+ \| \d+ \| )[\d.]+ % to"
    changed = re.sub(interval, r"\g<1>99.1 % to", (run / "README.md").read_text())
    (run / "README.md").write_text(changed)


def table_with(**columns):
    def change(run):
        score = json.loads((run / "results.json").read_text())["test"]["keyword"]
        line = {"run": "run", "readout": "keyword", "accuracy": score["accuracy"], "n": score["n"]} | columns
        (run.parent / "results.csv").write_text(f"{','.join(line)}\n{','.join(map(str, line.values()))}\n")

    return change


def one_readout_less(run):
    edited(run / "results.json", lambda r: r["test"].pop("likelihood"))


def another_script(run):
    """A record that says it is a baseline's, whose folder has no checkpoints; what was seen is emptied."""
    nothing_seen(run)
    edited(run / "run.json", lambda r: r["arguments"].update(model="eegnet"))


def right_trials_of_an_epoch(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[0]["val"]["keyword"]["correct"] = 10**400
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def seen_nobody(run):
    path = best_checkpoint(run)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"seen": [*content["seen"], "X1/T"]}, path)


def called_control(run):
    edited(run / "run.json", lambda r: r["arguments"].update(shuffle_labels=True))


RUNS = {
    "the card's interval": (interval_of_the_card, "README.md, its model card, says other scores of keyword (test)"),
    "the card's validation": (card("| val | keyword | ", "| val | keyword | 1"), "says other scores of keyword (val)"),
    "the card's spaces": (card("| test | head | ", "|test | head | 1"), "says other scores of head (test)"),
    "kappa in results.csv": (table_with(kappa=0.999), "results.csv says another kappa of keyword"),
    "n in results.csv": (table_with(n=4000), "results.csv says another n of keyword"),
    "a blank in results.csv": (table_with(run="run ", accuracy=0.99), "results.csv says another accuracy of keyword"),
    "a read-out that is gone": (one_readout_less, "results.json has no score of likelihood"),
    "another script, and nothing seen": (another_script, "lists nothing as seen"),
    "an accuracy of 400 digits": (
        lambda run: edited(run / "results.json", lambda r: r["test"]["keyword"].update(accuracy=10**400)),
        "other scores of keyword",
    ),
    "400 digits of right trials": (right_trials_of_an_epoch, "is not its"),
    "an accuracy, and not its count": (accuracy, "other scores of keyword"),
    "an accuracy, and a record of decoding": (said_to_be_decoded, "other scores of keyword"),
    "seen, a number": (in_checkpoint(seen=5), "its seen cannot be right"),
    "classes, a number": (in_checkpoint(classes=3), "its classes cannot be right"),
    "absent, a list of lists": (in_checkpoint(absent=[["a"]]), "its absent cannot be right"),
    "seen, tensors": (in_checkpoint(seen=torch.ones(3)), "its seen cannot be right"),
    "seen, somebody of nowhere": (seen_nobody, "lists X1/T as seen, which is not in the store"),
    "a band in the record": (
        lambda run: edited(run / "run.json", lambda r: r["arguments"].update(band=[1, 30])),
        "trained with --band None, and the run's record says [1, 30]",
    ),
    "a record that calls it a control": (called_control, "than a control of seed 0 gives them"),
    "last.pth's history": (remembered, "than last.pth remembers"),
    "an epoch of 400 digits": (
        lambda run: edited(run / "results.json", lambda r: r.update(best_epoch=10**400)),
        "was tested; by validation",
    ),
    "a p-value": (interval, "other scores of likelihood"),
    "the validation in results.json": (validation, "another validation"),
    "another epoch wins": (another_epoch, "than last.pth remembers"),
    "an accuracy of an epoch": (accuracy_of_an_epoch, "is not its"),
    "the list of what it has seen": (nothing_seen, "lists nothing as seen"),
    "the weights": (other_weights, "model.safetensors has other weights"),
    "answers and results, and not probabilities": (an_answer, "own probabilities, ranks or texts"),
    "all answers, and not results": (rows_alone, "other scores of likelihood"),
    "a line of results.csv": (table, "results.csv says another accuracy"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_file_of_a_run_that_was_edited_is_named(demo, run, name):
    change, words = RUNS[name]
    change(run)
    store = open_store(demo.store)
    found = [f for f in run_findings(read_run(run), store, splits_of(store, BCIC, "published")) if f.kind == "BREACH"]
    assert any(words in finding.words for finding in found), found
    assert not any("has seen no test" in finding.words for finding in found)


@pytest.mark.parametrize("file, content, words", [
    ("results.csv", b"run,readout\xff\xfe", "its scores in a table"),
    ("results.csv", "run,readout,accuracy\nrun,keyword,0.5\n".encode("utf-16"), "its scores in a table"),
    ("results.csv", b"run,readout\nx," + b"y" * 140_000, "its scores in a table"),
    ("metrics.jsonl", b"[" * 100_000, "is missing or damaged"),
])  # fmt: skip
def test_a_file_of_a_run_that_cannot_be_read_is_said_not_to_be(demo, run, file, content, words):
    (run / file).write_bytes(content)
    store = open_store(demo.store)
    found = list(run_findings(read_run(run), store, splits_of(store, BCIC, "published")))
    assert any(words in finding.words for finding in found if finding.kind == "cannot"), found
    assert not breaches(found)


def test_a_run_as_it_was_written_has_no_breach_in_its_files(demo, trained):
    store = open_store(demo.store)
    found = list(run_findings(read_run(trained), store, splits_of(store, BCIC, "published")))
    assert not breaches(found) and not [f for f in found if f.kind == "cannot"], found


def test_rows_and_results_that_were_edited_alike_are_not_what_the_checkpoint_decodes(demo, run):
    store = open_store(demo.store)
    said = list(decoded_findings(read_run(run), BCIC, store, None, torch.device("cpu")))
    assert [f.kind for f in said] == ["ok"] and "16 answers agree" in said[0].words, said
    rows = read_rows(run / "decoded_test.jsonl")
    for row in rows:
        of = row.readouts["likelihood"]
        of.label, of.probabilities = (row.true_label + 1) % 4, [float(k == (row.true_label + 1) % 4) for k in range(4)]
    _write_alike(run, rows)
    found = breaches(decoded_findings(read_run(run), BCIC, store, None, torch.device("cpu")))
    assert "its checkpoint decoded anew have other answers" in found["run"]


def test_a_folder_of_decoded_trials_is_decoded_anew_with_the_checkpoint_that_its_record_names(demo, run):
    """At random: whoever knew which trials are tried could change the others."""
    store, device = open_store(demo.store), torch.device("cpu")
    best = best_checkpoint(run)
    decoded = run.with_name("decoded")
    decoded.mkdir()
    shutil.copy(run / "decoded_test.jsonl", decoded / "decoded.jsonl")
    record = json.loads((run / "run.json").read_text())
    arguments = {name: value for name, value in record["arguments"].items() if name not in ("align", "adapt")}
    arguments["encoder_seed"] = 0
    (decoded / "run.json").write_text(json.dumps(record | {"projection": str(best), "arguments": arguments}))
    said = list(decoded_findings(read_run(decoded), BCIC, store, None, device))
    assert [f.kind for f in said] == ["ok"], said
    (used,) = used_findings(read_run(decoded), load_splits(demo.store, BCIC, "published").values())
    assert used.kind == "cannot" and "its checkpoint has" in used.words
    rows = read_rows(decoded / "decoded.jsonl")
    honest = [row.uses for row in rows]
    for row in rows:
        row.uses = USES[1]
    write_rows(rows, decoded / "decoded.jsonl")
    found = breaches(decoded_findings(read_run(decoded), BCIC, store, None, device))
    assert "was used of the test person, its checkpoint 'nothing'" in found["decoded"]
    for row, uses in zip(rows, honest, strict=True):
        row.uses, of = uses, row.readouts["likelihood"]
        of.label, of.probabilities = (row.true_label + 1) % 4, [float(k == (row.true_label + 1) % 4) for k in range(4)]
    write_rows(rows, decoded / "decoded.jsonl")
    found = breaches(decoded_findings(read_run(decoded), BCIC, store, None, device))
    assert "its checkpoint decoded anew have other answers" in found["decoded"]
    drawn = {tuple(_drawn(read_run(decoded), "none")) for _ in range(5)}
    assert len(drawn) > 1 and all(len(places) == 16 for places in drawn)
    (decoded / "run.json").write_text(json.dumps(record | {"arguments": arguments | {"model": "csp_lda"}}))
    said = list(decoded_findings(read_run(decoded), BCIC, store, None, device))
    assert [f.kind for f in said] == ["cannot"] and "a baseline keeps no model" in said[0].words


# ---------------------------------------------------------------- seen images: targets, answers


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    from tests.conftest import run_inside

    folder = tmp_path_factory.mktemp("seen")
    things_store(folder, people=("sub-01",))
    run_inside(SCRIPT, *training(folder, folder / "ubp", epochs=2))
    return folder


def looked_at(folder, run):
    splits = load_splits(folder / "processed_lmdb", load_description("THINGS"), "joint")
    run = read_run(run)
    return list(target_findings(run, splits, folder / "images", None, torch.device("cpu")))


@pytest.mark.parametrize("lists, words", [
    ({"seen": [], "classes": []}, "lists nothing as seen"),
    ({"seen": [], "absent": "all"}, "trials as without a picture, and the run's record 0"),
    ({"classes": None}, "its classes cannot be right"),
    ({}, ""),
])  # fmt: skip
def test_what_a_checkpoint_of_seen_images_lists_is_not_taken_from_itself(seen, tmp_path, lists, words):
    shutil.copytree(seen / "ubp", tmp_path / "ubp")
    description, store = load_description("THINGS"), open_store(seen / "processed_lmdb")
    splits = splits_of(store, description, "joint")
    for path in (tmp_path / "ubp").glob("encoder_epoch*.pth"):
        content = torch.load(path, weights_only=True)
        every = sorted({trial.image for mode in ("train", "val") for trial in splits[mode]})
        changed = {name: every if value == "all" else value for name, value in lists.items()}
        torch.save(content | changed, path)
    found = list(run_findings(read_run(tmp_path / "ubp"), store, splits))
    said = [f.words for f in found if f.kind == "BREACH"]
    assert any(words in one for one in said) if words else not said, found
    assert any("has seen no test" in f.words for f in found) == (not words)


def test_targets_and_answers_of_seen_images_are_made_anew(seen, tmp_path):
    found = looked_at(seen, seen / "ubp")
    assert [f.kind for f in found] == ["ok", "ok"] and "answers agree" in found[1].words, found

    # rows and results that were edited alike
    shutil.copytree(seen / "ubp", tmp_path / "ubp")
    rows = read_rows(tmp_path / "ubp/decoded_test.jsonl")
    for row in rows:
        row.readouts["retrieval"].label, row.readouts["retrieval"].rank = (row.true_label + 1) % 6, 2
    _write_alike(tmp_path / "ubp", rows)
    assert "other answers than its rows" in breaches(looked_at(seen, tmp_path / "ubp"))["ubp"]

    # as sure as nobody is, or under numbers that no trial has
    for name in ("sure", "numbers"):
        shutil.copytree(seen / "ubp", tmp_path / name)
        rows = read_rows(tmp_path / name / "decoded_test.jsonl")
        for row in rows:
            row.index += 1000 * (name == "numbers")
            if name == "sure":
                row.readouts["retrieval"].chance = 1 / 200
        write_rows(rows, tmp_path / name / "decoded_test.jsonl")
        words = "other answers than its rows" if name == "sure" else "another trial's, or nobody's"
        assert words in breaches(looked_at(seen, tmp_path / name))[name]

    # and one that says that it was trained towards other targets
    edited(
        tmp_path / "ubp/run.json",
        lambda r: r["depends_on"].update({name: "0" * 64 for name in r["depends_on"] if name.startswith("set of")}),
    )
    assert "trained towards other targets" in breaches(looked_at(seen, tmp_path / "ubp"))["ubp"]


def test_targets_between_those_at_the_ends_and_in_the_middle_are_looked_at_too(seen):
    (file,) = (seen / "token_cache").glob("image_targets-*")
    kept = read_kept(file)
    changed, n = kept["targets"].roll(1, dims=0), len(kept["targets"])
    places = [0, n // 2, n - 1]
    changed[places] = kept["targets"][places]
    try:
        keep({"targets": changed}, file)
        assert "in the target cache is not what its model makes" in breaches(looked_at(seen, seen / "ubp"))["ubp"]
    finally:
        keep(kept, file)


def test_a_target_cache_that_was_exchanged_for_another_is_named(seen, tmp_path):
    (file,) = (seen / "token_cache").glob("image_targets-*")
    kept = read_kept(file)
    try:
        keep({"targets": kept["targets"].roll(1, dims=0)}, file)  # with a checksum that is right
        assert "in the target cache is not what its model makes" in breaches(looked_at(seen, seen / "ubp"))["ubp"]
        file.unlink()
        assert [f.kind for f in looked_at(seen, seen / "ubp")] == ["cannot"]
        assert not list(Path(seen / "token_cache").glob("image_targets-*"))  # nothing was made in its place
    finally:
        keep(kept, file)
