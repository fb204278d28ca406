"""Training on seen images, retrieval and pictures, by the real command lines on small stores."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.alignment import LABELLED
from datasets.description import load_description
from datasets.repetitions import averages, repetitions, shuffled_images, some_repetitions
from datasets.store import open_store
from datasets.trials import TrialDataset
from models.clip_targets import image_paths, image_targets
from models.contrastive import k_way, retrieval_ranks
from models.CSBrain import CSBrain
from stages.retrieval import similarities
from stages.rows import read_rows, write_rows
from tests.conftest import ROOT, edited, flat, once, read_jsonl
from tests.processes import by_forks
from tests.seen_images import (
    CLIP,
    SCRIPT,
    imagenet_store,
    interrupted_after,
    save_model,
    seen_runs,
    seen_things,
    training,
)
from utils.files import read_csv, read_json, write_json


@pytest.fixture(scope="session")
def things(tmp_path_factory):
    return seen_things(tmp_path_factory)


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    return once(tmp_path_factory, "seen_imagenet", lambda folder: (folder.mkdir(), imagenet_store(folder, days=2)))


def on_imagenet(folder, run, **more):
    return training(
        folder,
        run,
        **{"downstream_dataset": "EEGImageNet", "encoder": "mlp", "optimizer": "adam", "lr": 3e-3, "batch_size": 16}
        | more,
    )


def ranked(folder, output_dir):
    """Arguments of what reads a run on THINGS-like trials."""
    return ["--datasets_dir", folder / "processed_lmdb", "--images_dir", folder / "images", "--output_dir", output_dir,
            "--cuda", -1]  # fmt: skip


@pytest.fixture(scope="session")
def trained(things, tmp_path_factory):
    """A short run and its control."""
    return seen_runs(things, tmp_path_factory)


# ---------------------------------------------------------------- training


def test_images_that_were_never_trained_on_are_retrieved_and_the_control_is_at_chance(trained):
    rows = read_rows(trained / "ubp/decoded_test.jsonl")
    assert len(rows) == 12 and {row.subject for row in rows} == {"sub-01", "sub-02"} and rows[0].simulated
    ranks = [row.readouts["retrieval"].rank for row in rows]
    assert np.mean([rank == 1 for rank in ranks]) >= 0.6 and np.mean(ranks) < 2
    assert all(
        (row.readouts["retrieval"].label == row.true_label) == (row.readouts["retrieval"].rank == 1) for row in rows
    )
    control = read_rows(trained / "ubp_shuffled/decoded_test.jsonl")
    assert np.mean([row.readouts["retrieval"].rank == 1 for row in control]) <= 0.5
    assert [(r.subject, r.session, r.trial) for r in control] == [(r.subject, r.session, r.trial) for r in rows]
    assert [r.true_label for r in control] != [r.true_label for r in rows]


def test_the_epoch_is_chosen_on_held_out_concepts(trained, things):
    history, results = read_jsonl(trained / "ubp/metrics.jsonl"), read_json(trained / "ubp/results.json")
    best = max(history, key=lambda row: (row["val"]["retrieval"]["accuracy"], -row["epoch"]))
    assert results["best_epoch"] == best["epoch"] and results["val"] == best["val"]
    assert best["val"]["retrieval"]["n"] == 2 * 2 * 2  # people, concepts, image slots
    store = open_store(things / "processed_lmdb")
    checkpoint = torch.load(trained / f"ubp/encoder_epoch{best['epoch']}.pth", weights_only=True)
    assert set(checkpoint["seen"]) == {t.image for t in store.trials if t.image.startswith("training")}


def test_evaluate_reads_the_rows_with_top_5_and_the_control(trained, script, tmp_path):
    done = script("evaluate.py", trained / "ubp", "--output_dir", tmp_path / "t")
    assert done.code == 0, done.err
    assert "| top-5 |" in done.out and "its level" in done.out and "16.7 %" in done.out and "simulated" in done.out


def test_a_run_that_was_interrupted_resumes_to_the_same_weights(things, script, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert script(SCRIPT, *training(things, whole, epochs=3)).code == 0
    with interrupted_after(2, monkeypatch):
        assert script(SCRIPT, *training(things, cut, epochs=3)).code == 130
    assert script(SCRIPT, *training(things, cut, epochs=3, resume=True)).code == 0
    assert read_jsonl(cut / "decoded_test.jsonl") == read_jsonl(whole / "decoded_test.jsonl")
    assert read_jsonl(cut / "metrics.jsonl") == read_jsonl(whole / "metrics.jsonl")
    done = script(SCRIPT, *training(things, cut, epochs=3, resume=True, tmax=0.3))
    assert done.code == 2 and "window was" in done.error_line
    done = script(SCRIPT, *training(things, cut, epochs=3))
    assert done.code == 2 and "--resume" in done.error_line


@pytest.mark.parametrize("more", [
    {"encoder": "atm", "subject_embedding": "shared", "positions": "sinusoid"}, {"encoder": "atm",
    "atm_parts": ["tsconv"], "objective": "generation"},
    {"encoder": "nice", "average_train": 2, "positives": "row"}, {"encoder": "sgdm", "channels": ["occipital",
    "parietal"], "tmax": 0.2, "band": [5, 40], "align": "causal"},
    {"encoder": "rgnn", "target": "text"}, {"setting": "cross", "subject": "sub-02", "channels": ["posterior"]},
    {"setting": "within", "subject": "sub-01", "test_repetitions": 2, "objective": "mse"}, {"encoder": "de_mlp"},
], ids=["atm", "atm parts", "nice", "sgdm", "rgnn to text", "cross", "within", "de_mlp"])  # fmt: skip
def test_a_way_of_training_is_retrieved_from_again(things, script, tmp_path, more):
    done = script(SCRIPT, *training(things, tmp_path / "run", **{"epochs": 1} | more))
    assert done.code == 0, done.err
    rows = read_rows(tmp_path / "run/decoded_test.jsonl")
    assert {r.subject for r in rows} == ({more["subject"]} if "subject" in more else {"sub-01", "sub-02"})
    (checkpoint,) = (tmp_path / "run").glob("encoder_epoch*.pth")
    checkpoint = torch.load(checkpoint, weights_only=True)
    assert (checkpoint["band"], checkpoint["align"]) == (more.get("band"), more.get("align", "none"))
    aligned = ["earlier trials, unlabelled (causal)"] if "align" in more else []
    assert {r.uses for r in rows} == {"; ".join(["other trials, labelled", *aligned])}
    retrieved = script("retrieve.py", tmp_path / "run", "--datasets_dir", things / "processed_lmdb", "--images_dir",
        things / "images",
                       "--output_dir", tmp_path / "out", "--cuda", -1)  # fmt: skip
    assert retrieved.code == 0, retrieved.err
    if "test_repetitions" not in more and more.get("target") != "text":
        again = read_rows(tmp_path / "out/retrieval.jsonl")
        assert [r.readouts["retrieval"].rank for r in again] == [r.readouts["retrieval"].rank for r in rows]


def test_targets_are_kept_by_their_bytes_and_not_by_their_names(things, script, tmp_path):
    shutil.copytree(things / "images", tmp_path / "images")
    flags = {"images_dir": tmp_path / "images", "cache_dir": tmp_path / "cache", "epochs": 1, "lambda_text": 0.5}
    first = script(SCRIPT, *training(things, tmp_path / "a", **flags))
    assert "image targets: 38, 38 embedded now" in first.out and "sentence targets: 22, 22 embedded now" in first.out
    again = script(SCRIPT, *training(things, tmp_path / "b", **flags))
    assert again.out.count("from the cache") == 2
    Image.new("RGB", (64, 64), "red").save(tmp_path / "images/test_images/00002_u2/u2.png")
    assert "image targets: 38, 38 embedded now" in script(SCRIPT, *training(things, tmp_path / "c", **flags)).out
    done = script(SCRIPT, *training(things, tmp_path / "a", resume=True, **flags))
    assert done.code == 2 and "other images" in done.error_line


def test_somebody_elses_clip_features_are_trained_towards_and_compared_with_the_model(things, script, tmp_path):
    images = sorted({t.image for t in open_store(things / "processed_lmdb").trials})
    paths = image_paths(images, things / "images")
    vectors = image_targets(str(CLIP), paths, tmp_path)
    torch.save({"img_features": dict(zip(images, vectors, strict=True))}, tmp_path / "features.pt")
    flags = {"epochs": 1, "lambda_text": 0, "clip_features": [tmp_path / "features.pt"]}
    done = script(SCRIPT, *training(things, tmp_path / "run", **flags, clip_model="nowhere", images_dir="nowhere"))
    assert done.code == 0 and "not compared with --clip_model nowhere" in done.out, done.err
    kept = torch.load(next((tmp_path / "run").glob("encoder_epoch*.pth")), weights_only=True)
    assert kept["clip"].startswith("features ") and kept["clip_features"] == [str(tmp_path / "features.pt")]
    done = script(
        "retrieve.py", tmp_path / "run", "--datasets_dir", things / "processed_lmdb", "--images_dir", "nowhere",
        "--clip_features", tmp_path / "features.pt", "--cuda", -1, "--output_dir", tmp_path / "out",
        "--test_repetitions", 8,
    )  # fmt: skip
    assert done.code == 0 and "no classification: the features have no sentences" in done.out, done.err
    assert "no top5.png" in done.out and list(read_rows(tmp_path / "out/retrieval.jsonl")[0].readouts) == ["retrieval"]
    ours = script(SCRIPT, *training(things, tmp_path / "ours", epochs=1, lambda_text=0))
    assert ours.code == 0
    results = [read_json(tmp_path / name / "results.json")["test"] for name in ("run", "ours")]
    assert results[0] == results[1]
    torch.save({"img_features": dict(zip(images, vectors.flip(0), strict=True))}, tmp_path / "features.pt")
    done = script(SCRIPT, *training(things, tmp_path / "other", **flags))
    assert done.code == 2 and "the rows are in another order, or of another model" in done.error_line
    done = script(SCRIPT, *training(things, tmp_path / "other", **flags | {"target": "classes"}))
    assert done.code == 2 and "--clip_features has no part in --target classes" in done.error_line


def test_layers_of_any_vision_model_are_trained_towards_and_test_images_are_ranked_by_the_same(
    things, script, tmp_path
):
    save_model(tmp_path / "dino", "Dinov2", "BitImageProcessorPil")
    save_model(tmp_path / "siglip", "SiglipVision", "SiglipImageProcessorPil")
    images = sorted({t.image for t in open_store(things / "processed_lmdb").trials if t.image.startswith("test")})
    for model, more in (("dino", {"clip_layer": [1, 3], "blur": [0, 2]}), ("siglip", {"objective": "mse"})):
        flags = {"epochs": 3, "target": "vision", "clip_model": tmp_path / model, "objective": "nce"} | more
        done = script(SCRIPT, *training(things, tmp_path / "run" / model, **flags))
        assert done.code == 0 and "vision targets: 38, 38 embedded now" in done.out, done.err
        done = script("retrieve.py", tmp_path / "run" / model, *ranked(things, tmp_path / "out" / model))
        assert done.code == 0, done.err
        rows, again = (
            read_rows(path)
            for path in (tmp_path / "run" / model / "decoded_test.jsonl", tmp_path / "out" / model / "retrieval.jsonl")
        )
        assert list(again[0].readouts) == ["retrieval"]
        assert [r.readouts["retrieval"].rank for r in again] == [r.readouts["retrieval"].rank for r in rows]
    assert "python retrieve.py OWNER/NAME" in (tmp_path / "run/dino/README.md").read_text()
    settings = {"clip_model": str(tmp_path / "dino"), "clip_layer": [1, 3], "blur": [0.0, 2.0]}
    kept = torch.load(next((tmp_path / "run/dino").glob("encoder_epoch*.pth")), weights_only=True)
    assert {name: kept[name] for name in settings} == settings and kept["settings"]["out"] == 2 * 16
    done = script("generate_eeg2img.py", "--model_dir", tmp_path / "run/dino", *ranked(things, tmp_path / "drawn"),
        "--stage", "decode")  # fmt: skip
    assert done.code == 2 and "was trained towards vision" in done.error_line and "needs --target image" in done.err
    features = tmp_path / "features.pt"
    torch.save({"img_features": dict.fromkeys(images, torch.ones(32))}, features)
    done = script(
        "retrieve.py", tmp_path / "run/dino", *ranked(things, tmp_path / "other"), "--clip_features", features
    )
    assert done.code == 2 and "--clip_features has no part in --target vision" in done.error_line


def test_a_run_towards_blurred_images_is_ranked_and_drawn_by_blurred_ones(things, script, tmp_path):
    from stages.clip_runs import open_clip_run
    from stages.steps import nearest_images

    assert script(SCRIPT, *training(things, tmp_path / "run", epochs=1, blur=[4], cache_dir=tmp_path / "c")).code == 0
    done = script("retrieve.py", tmp_path / "run", *ranked(things, tmp_path / "out"), "--cache_dir", tmp_path / "c")
    assert done.code == 0, done.err
    rows, again = read_rows(tmp_path / "run/decoded_test.jsonl"), read_rows(tmp_path / "out/retrieval.jsonl")
    assert [r.readouts["retrieval"].rank for r in again] == [r.readouts["retrieval"].rank for r in rows]
    run = open_clip_run(tmp_path / "run", things / "processed_lmdb", "test", "", None, torch.device("cpu"))
    paths = image_paths(run.images, things / "images")
    sharp, blurred = (image_targets(str(CLIP), paths, tmp_path / "c", blur).float() for blur in ((), (4.0,)))
    groups = repetitions(run.dataset)
    own = [run.images.index(group.image) for group in groups]
    # what blurring adds is nearer to the own blurred image than to the own sharp one
    added = (torch.nn.functional.normalize(blurred) - torch.nn.functional.normalize(sharp))[own]
    rows, others, length = nearest_images(run, groups, added, things / "images", None, tmp_path / "c")
    of_blurred, of_sharp = (retrieval_ranks(added, of, torch.tensor(own)).tolist() for of in (blurred, sharp))
    assert [row.readouts["retrieval"].rank for row in rows] == of_blurred != of_sharp
    assert torch.equal(others["ceiling"], sharp[own]) and length == pytest.approx(float(sharp.norm(dim=1).mean()), 0.2)
    every = sorted({trial.image for trial in open_store(things / "processed_lmdb").trials})
    kept = set((tmp_path / "c").iterdir())
    image_targets(str(CLIP), image_paths(every, things / "images"), tmp_path / "c", [4.0])
    assert set((tmp_path / "c").iterdir()) == kept  # training embedded the same
    done = script("train_prior.py", "--model_dir", tmp_path / "run", *ranked(things, tmp_path / "prior"), "--epochs", 1)
    assert done.code == 0, done.err
    of_prior = read_rows(tmp_path / "prior/decoded_test.jsonl")
    assert [r.readouts["retrieval"].rank for r in of_prior] == [r.readouts["retrieval"].rank for r in again]
    kept = torch.load(run_file := next((tmp_path / "run").glob("encoder_epoch*.pth")), weights_only=True)
    torch.save(kept | {"blur": ["wide"]}, run_file)
    done = script("retrieve.py", run_file, *ranked(things, tmp_path / "out2"))
    assert done.code == 2 and "is damaged: blur is no list of numbers" in done.error_line


def test_trials_of_images_without_a_photo_are_left_out_and_tables_say_so(things, script, tmp_path):
    shutil.copytree(things / "images", tmp_path / "images")
    for image in ("training_images/00003_t3/t3_0.png", "test_images/00002_u2/u2.png"):
        (tmp_path / "images" / image).unlink()
    flags = {"images_dir": tmp_path / "images", "epochs": 1, "lambda_text": 0}
    done = script(SCRIPT, *training(things, tmp_path / "run", **flags))
    assert done.code == 0 and "test trials are left out, whose images have no target (sub-0" in done.out, done.err
    assert read_json(tmp_path / "run/run.json")["left_out"]["test"] == 16
    done = script(
        "retrieve.py", tmp_path / "run", "--datasets_dir", things / "processed_lmdb", "--images_dir",
        tmp_path / "images", "--cuda", -1, "--output_dir", tmp_path / "out", "--num_samples", 2,
    )  # fmt: skip
    assert done.code == 0 and "trials of 2 images are left out" in done.out, done.err
    rows = read_rows(tmp_path / "out/retrieval.jsonl")
    assert {row.readouts["retrieval"].n_classes for row in rows} == {5} and "test_images/00002_u2/u2.png" not in {
        row.image for row in rows
    }
    done = script("evaluate.py", tmp_path / "out", "--output_dir", tmp_path / "tables")
    assert done.code == 0 and "| left out |" in done.out and "16 test trials" in done.out, done.err


@pytest.mark.parametrize("more, said", [
    ({"setting": "within"}, "needs --subject"), ({"setting": "within", "subject": "sub-07"}, "no person sub-07"),
    ({"tmax": 0.05}, "lasts 0.1 s or more"), ({"channels": ["FZZ"]}, "no region or electrode FZZ"),
    ({"target": "text_states"}, "needs --captions"), ({"setting": "loso", "subject": "sub-01"},
    "does not keep apart the images"),
    ({"encoder": "de_mlp", "augment": ["shift"]}, "what is read here are kept features"),
    ({"objective": "ce"}, "goes with --objective"), ({"encoder": "csbrain"}, "without a unit"),
    ({"granularity": "fine9"}, "THINGS has one set of classes"),
    ({"setting": "cross", "subject": "sub-01", "subject_embedding": "known", "encoder": "atm"}, "who has no token"),
    ({"positions": "sinusoid"}, "are atm's"),
    ({"clip_layer": [1]}, "--clip_layer has no part in --target image"),
    ({"target": "text", "blur": [2]}, "--blur has no part in --target text"),
    ({"target": "vision", "clip_layer": [9]}, "--clip_layer 9: "), ({"blur": [999]}, "--blur 999: "),
    ({"target": "vision", "clip_model": ROOT / "demo/assets/classifier"}, "is a resnet; --target vision reads clip"),
    ({"encoder": "sgdm", "channels": ["O1", "O2"]}, "too few for SGDM"), ({"clip_model": "nowhere"},
    "--clip_model nowhere"), ({"images_dir": "nowhere"}, "is missing"),
])  # fmt: skip
def test_what_is_asked_wrongly_is_one_line(things, script, tmp_path, more, said):
    done = script(SCRIPT, *training(things, tmp_path / "run", **{"epochs": 1} | more))
    assert done.code == 2 and said in done.err and "Traceback" not in done.err


def test_an_encoder_that_was_pretrained_on_the_test_person_is_refused(imagenet, script, tmp_path):
    montage = load_description("EEGImageNet").montage
    encoder = CSBrain.build(montage.brain_regions, montage.sorted_indices)
    weights = {"model": encoder.state_dict(), "what": "csbrain", "pretrained_on": ["EEGImageNet/S00"]}
    torch.save(weights, tmp_path / "csbrain_epoch1.pth")
    flags = {"target": "classes", "encoder": "csbrain", "setting": "cross", "subject": "S00", "epochs": 1}
    flags |= {"foundation_dir": tmp_path / "csbrain_epoch1.pth", "cache_dir": tmp_path / "cache"}
    done = script(SCRIPT, *on_imagenet(imagenet, tmp_path / "run", **flags))
    assert done.code == 2 and "was pretrained on trials of EEGImageNet/S00, who is tested" in done.error_line


def test_a_store_with_nan_is_one_line(things, script, tmp_path):
    from datasets.store import write_store

    store = open_store(things / "processed_lmdb")
    rows = [(t, store.read(t).copy()) for t in store.trials]
    rows[5][1][3, 4] = np.nan
    write_store(
        tmp_path / "x/processed_lmdb",
        {k: store.meta[k] for k in ("sfreq", "dataset", "electrodes", "classes", "units")},
        [rows],
    )
    done = script(SCRIPT, *training(things, tmp_path / "run", datasets_dir=tmp_path / "x/processed_lmdb"))
    assert done.code == 2 and rows[5][0].key in done.error_line and "NaN" in done.error_line


# ---------------------------------------------------------------- EEG-ImageNet


@pytest.mark.parametrize("more, n, classes", [
    ({"encoder": "mlp"}, 72, 6), ({"encoder": "rgnn", "setting": "cross", "subject": "S01"}, 24, 6),
    ({"encoder": "eegnet", "granularity": "fine0", "optimizer": "sgd", "epochs": 1}, 48, 4), ({"setting": "day",
    "subject": "S02", "granularity": "coarse"}, 20, 2),
], ids=["joint", "cross", "fine0", "another day"])  # fmt: skip
def test_classes_are_told_on_what_a_protocol_keeps_apart(imagenet, script, tmp_path, more, n, classes):
    done = script(SCRIPT, *on_imagenet(imagenet, tmp_path / "run", **{"target": "classes", "epochs": 8} | more))
    assert done.code == 0, done.err
    rows = read_rows(tmp_path / "run/decoded_test.jsonl")
    score = read_json(tmp_path / "run/results.json")["test"]["classifier"]
    assert (
        len(rows) == n
        and score["chance"] == pytest.approx(1 / classes)
        and len(rows[0].readouts["classifier"].probabilities) == classes
    )
    if more["encoder" if "encoder" in more else "setting"] in ("mlp", "day"):
        assert score["accuracy"] > 2 / classes - 0.2
    assert ("drift alone" in done.out) == (more.get("setting", "joint") == "joint")


@pytest.mark.parametrize("model", ["ridge", "knn", "forest", "svm"])
def test_classifiers_on_differential_entropy_stand_in_the_same_table(imagenet, script, tmp_path, model):
    done = script("baseline.py", "--model", model, "--downstream_dataset", "EEGImageNet", "--datasets_dir",
        imagenet / "processed_lmdb",
                  "--protocol", "within:S00", "--output_dir", tmp_path / "run", "--cuda", -1)  # fmt: skip
    assert done.code == 0, done.err
    rows = read_rows(tmp_path / "run/decoded_test.jsonl")
    assert len(rows) == 24 and np.mean([r.readouts["classifier"].label == r.true_label for r in rows]) > 0.5


def test_text_states_become_pictures_beside_those_from_captions(imagenet, script, tmp_path):
    from demo.tiny_models import complete_image_model

    complete_image_model(ROOT / "demo/assets/stable-diffusion", tmp_path / "sd")
    flags = {
        "target": "text_states",
        "captions": imagenet / "captions.jsonl",
        "image_model": tmp_path / "sd",
        "epochs": 3,
        "passes": 3,
        "lr": 1e-3,
    }
    done = script(SCRIPT, *on_imagenet(imagenet, tmp_path / "run", **flags))
    assert done.code == 0, done.err
    assert read_json(tmp_path / "run/results.json")["test"]["prototype"]["n"] == 72
    draw = flat({
        "conditioning": "text_states", "model_dir": tmp_path / "run", "datasets_dir": imagenet / "processed_lmdb",
        "images_dir": imagenet / "images", "image_model": tmp_path / "sd",
        "captions": imagenet / "captions.jsonl", "num_samples": 4, "num_inference_steps": 3, "image_size": 64,
        "output_dir": tmp_path / "out", "cuda": -1,
    })  # fmt: skip
    done = script("generate_eeg2img.py", *draw)
    assert done.code == 0 and "4 images drawn" in done.out and "nobody says" in done.out, done.err
    assert {tuple(row.readouts) for row in read_rows(tmp_path / "out/decoded.jsonl")} == {("prototype",)}
    assert (
        len(list((tmp_path / "out").glob("generated_*.png")))
        == len(list((tmp_path / "out/true_class").glob("*.png")))
        == 4
    )
    assert (
        Image.open(next((tmp_path / "out").glob("comparison_*.png"))).width == 3 * 256
    )  # seen, from its caption, decoded
    first = {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*.png")}
    again = script("generate_eeg2img.py", *draw)
    assert again.code == 0 and "0 images drawn, 4 were there" in again.out
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*.png")}
    shutil.copytree(tmp_path / "run", tmp_path / "same")  # the mean of a run and itself is the run
    both = [*draw, "--model_dir", tmp_path / "run", tmp_path / "same", "--output_dir", tmp_path / "two"]
    by_forks(2, tmp_path / "log", "generate_eeg2img.py", *both, "--stage", "decode", "--batch_size", 1)
    alone, mean = (read_rows(tmp_path / name / "decoded.jsonl") for name in ("out", "two"))
    assert [row.readouts["prototype"] for row in mean] == [row.readouts["prototype"] for row in alone]
    scored = script(
        "evaluate.py",
        tmp_path / "out",
        "--images",
        "--metric_weights",
        tmp_path,
        "--report",
        "--output_dir",
        tmp_path / "tables",
    )
    assert "c3" in (tmp_path / "tables/report.html").read_text()
    assert scored.code == 0 and "the stimulus's caption" in scored.out and "paired at random" in scored.out, scored.err
    judged = script("generate_eeg2img.py", *draw, "--clip_model", CLIP, "--stage", "images")
    assert judged.code == 0 and "0 images drawn" in judged.out and "nobody says" not in judged.out, judged.err
    labels = {row.readouts["picture"].label for row in read_rows(tmp_path / "out/decoded.jsonl")}
    assert labels <= set(range(6))
    shutil.copytree(tmp_path / "out", tmp_path / "out_shuffled")  # a control that nobody judged
    rows = read_rows(tmp_path / "out/decoded.jsonl")
    for row in rows:
        row.readouts.pop("picture")
        row.true_label = (row.true_label + 1) % 6
    write_rows(rows, tmp_path / "out_shuffled/decoded.jsonl")
    record = read_json(tmp_path / "out_shuffled/run.json")
    record["arguments"]["shuffle_labels"] = True
    write_json(record, tmp_path / "out_shuffled/run.json")
    scored = script("evaluate.py", tmp_path / "out")
    lines = {line.split(" | ")[1]: line for line in scored.out.splitlines() if line.startswith("| out | p")}
    assert set(lines) == {"prototype", "picture"}, scored.err
    assert "not run" in lines["picture"] and "not run" not in lines["prototype"]
    lines = (imagenet / "captions.jsonl").read_text().splitlines()
    (tmp_path / "few.jsonl").write_text("\n".join(lines[2:]) + "\n")
    few = flags | {"captions": tmp_path / "few.jsonl", "epochs": 1, "passes": 1}
    done = script(SCRIPT, *on_imagenet(imagenet, tmp_path / "few", **few))
    assert done.code == 0 and "2 images have no target" in done.out, done.err
    (tmp_path / "some.jsonl").write_text(lines[0] + "\n")
    done = script("generate_eeg2img.py", *draw[:-2], "--captions", tmp_path / "some.jsonl", "--cuda", -1)
    assert done.code == 2 and "has no caption of" in done.error_line
    done = script(
        "retrieve.py",
        tmp_path / "run",
        "--datasets_dir",
        imagenet / "processed_lmdb",
        "--cuda",
        -1,
        "--output_dir",
        tmp_path / "r",
    )
    assert done.code == 2 and "trained towards text_states" in done.error_line


def test_no_image_that_tests_is_trained_on_where_people_saw_them_in_different_orders(imagenet, tmp_path):
    from dataclasses import replace

    from datasets.eeg_imagenet_dataset import DESCRIPTION
    from datasets.splits import split_trials

    store = open_store(imagenet / "processed_lmdb")
    rng = np.random.default_rng(0)
    trials = []
    for trial in store.trials:
        k = int(rng.integers(10)) if trial.subject != "S00" else int(trial.image[-5])
        trials.append(replace(trial, image=f"c{trial.label}/c{trial.label}_{k}.png"))
    store.trials = trials
    splits = split_trials(store, DESCRIPTION, "cross:S00")
    assert splits["train"] and not {t.image for t in splits["train"]} & {t.image for t in splits["test"]}


# ---------------------------------------------------------------- retrieval


def test_scores_are_those_of_the_ranks_exactly(trained, things, script, tmp_path):
    done = script("retrieve.py", trained / "ubp", "--datasets_dir", things / "processed_lmdb", "--images_dir",
        things / "images", "--output_dir",
                  tmp_path / "out", "--test_repetitions", 1, 4, "--cuda", -1)  # fmt: skip
    assert done.code == 0, done.err
    rows = read_rows(tmp_path / "out/ubp/retrieval.jsonl")
    lines = read_csv(tmp_path / "out/scores.csv")
    whole = [line for line in lines if (line["run"], line["read-out"], line["repetitions"]) == ("ubp", "retrieval", "")]
    (mean,) = [line for line in whole if line["person"].startswith("mean")]
    ranks = [row.readouts["retrieval"].rank for row in rows]
    assert float(mean["4-way"]) == pytest.approx(np.mean([k_way(rank, 6, 4) for rank in ranks]))
    assert {line["run"] for line in lines} == {"ubp", "ubp_shuffled"} and "10-way" not in mean
    assert {line["repetitions"] for line in lines} == {"", "1", "4"}
    assert {line["used of the test person"] for line in lines} == {rows[0].uses} == {"other trials, labelled"}
    assert "classification" in done.out and "Wilson" in done.out
    assert all((tmp_path / "out/ubp" / name).stat().st_size > 3000 for name in ("top5.png", "repetitions.png"))
    two = [trained / "ubp", *ranked(things, tmp_path / "two"), "--test_repetitions", 1, 4]
    by_forks(2, tmp_path / "log", "retrieve.py", *two)
    for name in ("scores.csv", "ubp/retrieval.jsonl", "ubp_shuffled/retrieval.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_other_geometries_are_ranked_a_person_at_a_time_and_stand_in_lines_of_their_own(
    trained, things, script, tmp_path
):
    flags = (*ranked(things, tmp_path / "out"), "--geometry", "plain", "whiten", "csls", "procrustes")
    done = script("retrieve.py", trained / "ubp", *flags)
    assert done.code == 0, done.err
    out = tmp_path / "out/ubp"
    plain = read_rows(out / "retrieval.jsonl")
    whole = "all trials, unlabelled (transductive)"
    lines = read_csv(tmp_path / "out/scores.csv")
    used = {line["read-out"]: line["used of the test person"] for line in lines if line["repetitions"] == ""}
    for name in ("whiten", "csls", "procrustes"):
        rows = read_rows(out / name / "retrieval.jsonl")
        assert {row.uses for row in rows} == {f"{LABELLED}; {whole}"} and {row.uses for row in plain} == {LABELLED}
        assert used[f"retrieval, {name}"] == f"{LABELLED}; {whole}" and used["retrieval"] == LABELLED
        assert [row.index for row in rows] == [row.index for row in plain]
    # its control is that of the same geometry
    alone = script("evaluate.py", out / "csls", "--output_dir", tmp_path / "tables")
    assert alone.code == 0, alone.err
    (line,) = read_csv(tmp_path / "tables/results.csv")
    assert line["control"] and int(line["control_n"]) == len(plain)
    # two seeds, one of them ranked otherwise, are no mean
    shutil.copytree(out, tmp_path / "again/ubp")
    for place in (tmp_path / "again/ubp/run.json", tmp_path / "again/ubp/csls/run.json"):
        edited(place, lambda record: [of.update(seed=9) for of in (record["arguments"], record["fixed"])])
    both = script("evaluate.py", out, tmp_path / "again/ubp/csls")
    assert both.code == 0 and "2 seeds" not in both.out, both.out


def test_embeddings_of_one_person_do_not_change_anothers_ranks():
    torch.manual_seed(0)
    eeg, targets = torch.randn(12, 5), torch.randn(6, 5)
    groups = [SimpleNamespace(subject=person) for person in ("P1", "P2") for _ in range(6)]
    for geometry in ("whiten", "csls", "procrustes"):
        whole = similarities(groups, eeg, targets, geometry)
        alone = similarities(groups[:6], eeg[:6], targets, geometry)
        assert torch.allclose(whole[:6], alone) and not torch.allclose(whole[6:], alone)


def test_two_runs_of_one_name_are_not_written_over_each_other(trained, things, script, tmp_path):
    shutil.copytree(trained / "ubp", tmp_path / "other/ubp")
    done = script("retrieve.py", trained / "ubp", tmp_path / "other/ubp", "--datasets_dir", things / "processed_lmdb",
        "--images_dir", things / "images",
                  "--output_dir", tmp_path / "out", "--cuda", -1)  # fmt: skip
    assert done.code == 2 and "two runs are called ubp" in done.error_line


def test_windows_and_regions_of_several_runs_become_figures(things, script, tmp_path):
    for name, more in {"all": {}, "early": {"tmax": 0.2}, "occipital": {"channels": ["occipital"]}}.items():
        assert script(SCRIPT, *training(things, tmp_path / "runs" / name, epochs=1, **more)).code == 0
    done = script("retrieve.py", *sorted((tmp_path / "runs").iterdir()), "--datasets_dir", things / "processed_lmdb",
        "--images_dir", things / "images",
                  "--output_dir", tmp_path / "out", "--cuda", -1)  # fmt: skip
    assert done.code == 0, done.err
    assert (tmp_path / "out/windows_1.png").is_file() and (tmp_path / "out/regions_1.png").is_file()


def test_a_published_checkpoint_is_read_and_its_kind_matters(things, script, tmp_path):
    from models.eeg_encoders import ATM
    from models.published import ATM as NAMES

    torch.manual_seed(0)
    state = ATM(n_times=100, dim=768).state_dict()
    published = {}
    for key, value in state.items():
        if "num_batches" in key:
            continue
        theirs = next(
            p
            for p, ours in NAMES.items()
            if (ours.rstrip("$") if ours != "stranger" else "stranger") and key.startswith(ours.replace(r"\1", "0"))
        )
        name = theirs.replace("\\", "").replace("(?=weight|bias)", "").rstrip("$") + key.removeprefix(NAMES[theirs])
        published[name] = value[..., None] if name.endswith(("conv1.weight", "conv2.weight")) else value
    torch.save(published, tmp_path / "ATMS.pth")
    ranks = {}
    for kind in ("develop", "main"):
        done = script("retrieve.py", "--published_checkpoint", tmp_path / "ATMS.pth", "--checkpoint_kind", kind,
            "--subject", "sub-01", "--clip_model", CLIP,
                      "--datasets_dir", things / "processed_lmdb", "--images_dir", things / "images", "--output_dir",
                      tmp_path / kind, "--cuda", -1)  # fmt: skip
        assert done.code == 0, done.err
        ranks[kind] = [row.readouts["retrieval"].rank for row in read_rows(tmp_path / kind / "retrieval.jsonl")]
    assert len(ranks["main"]) == 6 and ranks["main"] != ranks["develop"]
    done = script("retrieve.py", "--published_checkpoint", tmp_path / "ATMS.pth", "--encoder", "nice", "--subject",
        "sub-01", "--clip_model", CLIP,
                  "--datasets_dir", things / "processed_lmdb", "--images_dir", things / "images", "--output_dir",
                  tmp_path / "x", "--cuda", -1)  # fmt: skip
    assert done.code == 2 and "published nice" in done.error_line


@pytest.mark.parametrize("change", [
    {"seen": ["test_images/00002_u2/u2.png"]}, {"classes": ["a"]}, {"window": [0, 9]}, {"regions": ["Mars"]},
    {"settings": {}}, {"model": {}},
    {"people": [3]}, {"dataset": "VI"}, {"sfreq": 200.0}, {"protocol": "loso:sub-01"}, {"absent": [5]},
    {"clip_features": "x"}, {"clip_features": ["nowhere.pt"]},
], ids=lambda change: next(iter(change)))  # fmt: skip
def test_a_checkpoint_that_cannot_be_right_is_one_line(trained, things, script, tmp_path, change):
    path = next((trained / "ubp").glob("encoder_epoch*.pth"))
    torch.save(torch.load(path, weights_only=True) | change, tmp_path / "encoder_epoch1.pth")
    done = script("retrieve.py", tmp_path / "encoder_epoch1.pth", "--datasets_dir", things / "processed_lmdb",
        "--images_dir", things / "images",
                  "--output_dir", tmp_path / "out", "--cuda", -1)  # fmt: skip
    assert done.code == 2 and "Traceback" not in done.err and done.error_line


# ---------------------------------------------------------------- repetitions


def test_repetitions_are_averaged_once_each_and_drawn_alike(things):
    from datasets.description import load_description

    train = TrialDataset(things / "processed_lmdb", "train", "joint", load_description("THINGS"))
    whole, parts = repetitions(train), averages(train, 3)
    assert all(len(g.trials) == 4 for g in whole) and [len(g.trials) for g in parts[:2]] == [3, 1]
    assert sorted(k for g in parts for k in g.trials) == list(range(len(train)))
    drawn = some_repetitions(whole, 2, seed=0)
    assert drawn == some_repetitions(whole, 2, seed=0) != some_repetitions(whole, 2, seed=1) and {
        len(g.trials) for g in drawn
    } == {2}
    assert len({train.trials[k].session for g in drawn for k in g.trials}) == 4  # from all sessions
    trials, labels = shuffled_images(train.trials, train.labels, 0, whole=False)
    for session in "1234":
        of = [(t.image, n.image) for t, n in zip(train.trials, trials, strict=True) if t.session == session]
        assert sorted(a for a, _ in of) == sorted(b for _, b in of) and np.mean([a == b for a, b in of]) < 0.2
    label_of = dict(zip((t.image for t in train.trials), train.labels, strict=True))
    assert all(label_of[t.image] == label for t, label in zip(trials, labels, strict=True))


# ---------------------------------------------------------------- captions


def test_any_captioner_in_the_hubs_layout_writes_a_line_an_image_and_goes_on(imagenet, script, tmp_path):
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config=tower | {"vocab_size": 60, "encoder_hidden_size": 32, "bos_token_id": 57, "sep_token_id": 58,
        "pad_token_id": 0, "eos_token_id": 58},
        vision_config=tower | {"image_size": 32, "patch_size": 16}, projection_dim=32,
    )  # fmt: skip
    BlipForConditionalGeneration(config).save_pretrained(tmp_path / "blip")
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{k}" for k in range(55))]
    (tmp_path / "blip/vocab.txt").write_text("\n".join(words))
    from transformers import BertTokenizerFast

    BertTokenizerFast(str(tmp_path / "blip/vocab.txt")).save_pretrained(tmp_path / "blip")
    shutil.copytree(imagenet / "images/c0", tmp_path / "images/c0")
    flags = (
        "--images_dir",
        tmp_path / "images",
        "--output",
        tmp_path / "captions.jsonl",
        "--model",
        tmp_path / "blip",
        "--max_tokens",
        5,
        "--cuda",
        -1,
    )
    done = script("caption_images.py", *flags)
    assert done.code == 0 and "10 captioned now" in done.out, done.err
    lines = read_jsonl(tmp_path / "captions.jsonl")
    assert [line["image"] for line in lines] == [f"c0/c0_{k}.png" for k in range(10)] and all(
        line["caption"] for line in lines
    )
    whole, shared = (tmp_path / "captions.jsonl").read_bytes(), tmp_path / "shared.jsonl"
    by_forks(3, tmp_path / "log", "caption_images.py", *flags, "--output", shared, "--batch_size", 2)
    assert shared.read_bytes() == whole
    (tmp_path / "captions.jsonl").write_bytes(whole[: int(0.7 * len(whole))])  # a kill
    assert script("caption_images.py", *flags).code == 0
    assert {json.dumps(line) for line in read_jsonl(tmp_path / "captions.jsonl")} == {
        json.dumps(line) for line in lines
    }
    done = script("caption_images.py", *flags[:-4], "--model", CLIP, "--cuda", -1, "--output", tmp_path / "other.jsonl")
    assert done.code == 2 and "is a clip" in done.error_line
