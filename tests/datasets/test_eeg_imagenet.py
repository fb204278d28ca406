"""EEG-ImageNet: the authors' .pth, splits by position in the block, and what is wrong with files."""

import os
import shutil

import numpy as np
import pytest
import torch

from datasets.description import load_description
from datasets.eeg_imagenet_dataset import ELECTRODES
from datasets.splits import parts_left_out, split_trials
from datasets.store import open_store
from datasets.trials import TrialDataset

SCRIPT = "prepare_data_imagenet.py"
LABELS = [f"n{k:08d}" for k in range(10)]  # 8 fine, 2 coarse


def items_of(subjects, per_class=5, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"eeg_data": torch.from_numpy(1e-5 * rng.standard_normal((62, 501))),
        "granularity": "fine" if k < 8 else "coarse", "subject": subject,
         "label": LABELS[k], "image": f"{LABELS[k]}_{j}.JPEG"}
        for subject in subjects for k in rng.permutation(10) for j in range(per_class)
    ]  # fmt: skip


def save(path, items, **more):
    content = {"dataset": items, "labels": LABELS, "images": sorted({item["image"] for item in items})} | more
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def two_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    return [save(folder / f"EEG-ImageNet_{k}.pth", items_of([k, k + 2], seed=k)) for k in (0, 1)]


def prepare(script, paths, lmdb, *flags):
    return script(SCRIPT, "--pth_path", *paths, "--images_dir", paths[0].parent / "none", "--lmdb_dir", lmdb, *flags)


def test_trials_of_several_files_are_stored_in_microvolts(two_files, script, tmp_path):
    done = prepare(script, two_files, tmp_path / "store")
    assert done.code == 0 and "200 trials of 10 classes" in done.out and "fine0 8, " not in done.out, done.err
    assert [line.split()[:4] for line in done.out.splitlines() if line.startswith("S0")] == [
        [f"S{k:02d}", "10", "40", "50"] for k in range(4)
    ]
    store = open_store(tmp_path / "store")
    assert store.shape == (62, 501) and store.meta["granularities"] == {"coarse": [8, 9], "fine0": list(range(8))}
    items = torch.load(two_files[1], weights_only=True)["dataset"]
    trial = next(t for t in store.trials if t.key == "S03-1-r1-t00007")
    item = [i for i in items if i["subject"] == 3][6]
    assert np.allclose(store.read(trial), 1e6 * item["eeg_data"].numpy(), rtol=1e-6)
    assert trial.image == f"{item['label']}/{item['image']}" and LABELS[trial.label] == item["label"]


def test_a_blocks_first_trials_train_its_last_ones_test(two_files, script, tmp_path):
    prepare(script, two_files, tmp_path / "store")
    store = open_store(tmp_path / "store")
    splits = split_trials(store, load_description("EEGImageNet"), "within:S02")
    for label in range(10):
        places = {mode: [int(t.image[-6]) for t in of if t.label == label] for mode, of in splits.items()}
        assert places == {"train": [0, 1], "val": [2], "test": [3, 4]}  # of 50: 25, 5 and 20
    cross = split_trials(store, load_description("EEGImageNet"), "cross:S02")
    assert {t.subject for t in cross["test"]} == {"S02"} and "S02" not in {
        t.subject for t in (*cross["train"], *cross["val"])
    }
    coarse = TrialDataset(
        tmp_path / "store", "test", "within:S02", load_description("EEGImageNet"), granularity="coarse"
    )
    assert len(coarse) == 4 and set(coarse.labels) == {0, 1} and coarse.description.classes == tuple(LABELS[8:])


def test_a_second_days_code_needs_its_person_and_a_named_code_must_be_there(two_files, script, tmp_path):
    day2 = save(tmp_path / "day2.pth", items_of([16], per_class=1))
    done = prepare(script, [*two_files, day2], tmp_path / "store")
    assert done.code == 2 and "16 are of the second day" in done.error_line
    done = prepare(script, two_files, tmp_path / "store", "--same_person", "19=3")
    assert done.code == 2 and "no trial has the code 19" in done.error_line


def test_classes_get_names_and_a_second_day_its_person(two_files, script, tmp_path):
    day2 = save(tmp_path / "day2.pth", [item | {"stage": 2} for item in items_of([16], seed=9)])
    (tmp_path / "names.txt").write_text("".join(f"{label} thing {k}, other\n" for k, label in enumerate(LABELS)))
    done = prepare(
        script, [*two_files, day2], tmp_path / "store", "--same_person", "16=3", "--class_names", tmp_path / "names.txt"
    )
    assert done.code == 0, done.err
    store = open_store(tmp_path / "store")
    assert store.meta["classes"][4] == "thing 4" and {t.session for t in store.trials if t.subject == "S03"} == {
        "1",
        "2",
    }
    day = split_trials(store, load_description("EEGImageNet"), "day:S03")
    assert (
        {t.session for t in day["test"]} == {"2"}
        and len(day["test"]) == 50
        and len(day["train"]) == 40
        and len(day["val"]) == 10
    )
    assert {t.session for t in split_trials(store, load_description("EEGImageNet"), "within:S03")["test"]} == {"1"}


def nested():
    lists = ["x"]
    for _ in range(28):
        lists = [lists, lists]
    return lists


def nan(items):
    items[3]["eeg_data"] = items[3]["eeg_data"].clone()
    items[3]["eeg_data"][5, 7] = float("nan")


@pytest.mark.parametrize("change, more, said", [
    (lambda items: items[3].update(eeg_data=torch.zeros(63, 501)), {}, "item 3: eeg_data is (63, 501)"), (nan, {},
    "F7 holds NaN"),
    (lambda items: items[2].update(label="n9"), {}, "item 2 has the label"), (lambda items: items[2].update(extra=1),
    {}, "item 2 has"),
    (lambda items: items[2].update(image="../x.JPEG"), {}, "image '../x.JPEG'"), (lambda items: items[2].pop("subject"),
    {}, "item 2 has"),
    (lambda items: items[3].update(eeg_data=items[3]["eeg_data"].to_sparse()), {}, "a tensor of another kind"),
    (lambda items: items[3].update(eeg_data=items[3]["eeg_data"].to("meta")), {}, "a tensor of another kind"),
    (lambda items: items.clear(), {}, "lists of trials"),
    (lambda items: None, {"labels": ["/etc"]}, "'/etc' is no name"),
    (lambda items: None, {"labels": 3}, "lists of trials"), (lambda items: items[2].update(subject=10**600), {},
    "item 2 has the label"),
    (lambda items: items[2].update(label=nested()), {}, "over and over"),
    (lambda items: None, {"other": 1}, "expected dataset, labels and images"),
    (lambda items: [item.update(eeg_data=1e6 * item["eeg_data"]) for item in items], {}, "does not say its unit"),
], ids=["channels", "nan", "label", "key", "path", "subject", "sparse", "meta", "none", "absolute", "labels", "digits",
    "nested", "keys", "unit"])  # fmt: skip
def test_a_wrong_file_is_one_line(script, tmp_path, change, more, said):
    items = items_of([0], per_class=1)
    change(items)
    path = save(tmp_path / "x.pth", items, **more)
    done = prepare(script, [path], tmp_path / "store")
    assert done.code == 2 and said in done.error_line and not (tmp_path / "store").exists()
    if said == "does not say its unit":
        assert prepare(script, [path], tmp_path / "store", "--scale", "1e-6").code == 0


def test_a_label_that_is_listed_twice_is_refused(script, tmp_path):
    items = items_of([0], per_class=1)
    labels = list(dict.fromkeys(item["label"] for item in items))
    done = prepare(script, [save(tmp_path / "x.pth", items, labels=[*labels, labels[0]])], tmp_path / "store")
    assert done.code == 2 and f"lists the label {labels[0]} twice" in done.error_line


@pytest.mark.parametrize("kind", ["FIFO", "link to a device"])
def test_what_is_no_plain_file_is_refused_and_not_waited_for(process, tmp_path, kind):
    path = tmp_path / "x.pth"
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    flags = ("--pth_path", path, "--images_dir", tmp_path / "none", "--lmdb_dir", tmp_path / "store")
    done = process(SCRIPT, *flags, timeout=60)
    assert done.code == 2 and "x.pth" in done.error_line and "no plain file" in done.error_line


def test_a_tensor_that_wants_a_gradient_is_a_tensor_and_a_damaged_byte_is_found(script, tmp_path):
    items = items_of([0], per_class=1)
    for item in items:
        item["eeg_data"].requires_grad_()
    path = save(tmp_path / "x.pth", items)
    assert prepare(script, [path], tmp_path / "store").code == 0
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = prepare(script, [path], tmp_path / "other")
    assert done.code == 2 and "checksum" in done.error_line and not (tmp_path / "other").exists()


def test_a_file_runs_no_code_and_other_label_orders_are_refused(two_files, script, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"dataset": [Evil()], "labels": LABELS, "images": []}, tmp_path / "evil.pth")
    done = prepare(script, [tmp_path / "evil.pth"], tmp_path / "store")
    assert done.code == 2 and not (tmp_path / "ran").exists() and "cannot be loaded" in done.error_line
    other = save(tmp_path / "other.pth", items_of([5], per_class=1), labels=LABELS[::-1])
    done = prepare(script, [two_files[0], other], tmp_path / "store")
    assert done.code == 2 and "other labels, or in another order" in done.error_line
    done = prepare(script, [tmp_path / "nowhere.pth"], tmp_path / "store")
    assert done.code == 2 and "is not there" in done.error_line


def test_photos_are_looked_for_and_two_for_one_name_refused(script, tmp_path):
    items = items_of([0], per_class=1)
    path = save(tmp_path / "x.pth", items)
    for item in items:
        (tmp_path / "images" / item["label"]).mkdir(parents=True)
        (tmp_path / "images" / item["label"] / item["image"]).write_bytes(b"x")
    args = ("--pth_path", path, "--images_dir", tmp_path / "images", "--lmdb_dir", tmp_path / "store")
    done = script(SCRIPT, *args)
    assert done.code == 0 and "all 10 photos are there" in done.out
    first = tmp_path / "images" / items[0]["label"] / items[0]["image"]
    first.with_suffix(".png").write_bytes(b"y")
    done = script(SCRIPT, *args, "--overwrite")
    assert done.code == 2 and "two files for one image" in done.error_line
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "images").mkdir()
    done = script(SCRIPT, *args, "--overwrite")
    assert done.code == 2 and "is missing, and all others of 10" in done.error_line


def test_trials_of_missing_photos_are_left_out_and_counted_and_the_others_keep_their_part(two_files, script, tmp_path):
    items = torch.load(two_files[0], weights_only=True)["dataset"]
    lacking = {f"{LABELS[0]}/{LABELS[0]}_0.JPEG", f"{LABELS[8]}/{LABELS[8]}_4.JPEG"}  # one trains, one tests
    for item in items:
        folder = tmp_path / "images" / item["label"]
        folder.mkdir(parents=True, exist_ok=True)
        if f"{item['label']}/{item['image']}" not in lacking:
            (folder / item["image"]).write_bytes(b"x")
        (folder / f"._{item['image']}").write_bytes(b"macOS")
    args = ("--pth_path", two_files[0], "--lmdb_dir", tmp_path / "store", "--images_dir", tmp_path / "images")
    done = script(SCRIPT, *args)
    assert done.code == 0 and "2 of 50 photos are missing" in done.out, done.err
    assert "S02: 2 trials are left out, whose photos are missing (1 train, 1 test)" in done.out
    assert "1 test photos are missing: n and chance are not those of the complete set" in done.out
    assert [line.split()[3::3] for line in done.out.splitlines() if line.startswith("S0")] == [["48", "2"]] * 2
    assert "4 trials are left out: 2 photos are missing" in done.out
    store, description = open_store(tmp_path / "store"), load_description("EEGImageNet")
    assert len(store.trials) == 96 and not {t.image for t in store.trials} & lacking
    now = split_trials(store, description, "within:S02")
    prepare(script, two_files[:1], tmp_path / "whole")
    before = split_trials(open_store(tmp_path / "whole"), description, "within:S02")
    for mode in ("train", "val", "test"):
        assert [t.key for t in now[mode]] == [t.key for t in before[mode] if t.image not in lacking]
    assert parts_left_out(store, description, "test", {"S02"}) == 1


def test_the_folder_above_the_photos_is_named(two_files, script, tmp_path):
    (tmp_path / "imagenet/train" / LABELS[3]).mkdir(parents=True)
    (tmp_path / "imagenet/train" / LABELS[3] / f"{LABELS[3]}_1.JPEG").write_bytes(b"x")
    args = ("--pth_path", two_files[0], "--lmdb_dir", tmp_path / "store", "--images_dir", tmp_path / "imagenet")
    assert f"name {tmp_path}/imagenet/train" in script(SCRIPT, *args).error_line


def test_a_class_has_one_granularity_and_trials_marked_otherwise_are_counted(script, tmp_path):
    wnids = [f"n{k:08d}" for k in range(80)]  # fine classes first, as in the authors' files

    def file(name, subject, others):
        x = torch.from_numpy(1e-5 * np.random.default_rng(subject).standard_normal((62, 501)))
        items = [
            {"eeg_data": x, "subject": subject, "label": wnid, "image": f"{wnid}_{j}.JPEG",
             "granularity": "coarse" if k >= 40 or (k in others and j) else "fine"}
            for k, wnid in enumerate(wnids) for j in range(2)
        ]  # fmt: skip
        if others == range(19):
            items = [item for item in items if item["granularity"] == "coarse" or item["label"] not in wnids[:19]]
        torch.save({"dataset": items, "labels": wnids, "images": []}, tmp_path / name)
        return tmp_path / name

    paths = [file("1.pth", 0, ()), file("2.pth", 8, range(19)), file("3.pth", 9, range(5))]
    for some, said in (
        (paths, "24 trials of 19 fine classes are marked coarse (S08 19, S09 5)"),
        (paths[1:2], "S08 19"),
    ):
        done = prepare(script, some, tmp_path / "store", "--overwrite")
        assert done.code == 0 and said in done.out, done.err
        assert "classes: coarse 40, fine0 8, fine1 8, fine2 8, fine3 8, fine4 8" in done.out
    store = open_store(tmp_path / "store")
    assert store.meta["granularities"]["fine2"] == list(range(16, 24))
    items = torch.load(paths[1], weights_only=True)["dataset"]
    items[-1]["granularity"] = "fine"
    torch.save({"dataset": items, "labels": wnids, "images": []}, paths[1])
    assert "n00000079 among the last 40" in prepare(script, paths[1:2], tmp_path / "other").error_line


def test_a_folder_means_its_files_and_own_people_are_taken(script, tmp_path):
    (tmp_path / "raw").mkdir()
    path = save(tmp_path / "raw/mine.pth", items_of([23], per_class=2))
    (tmp_path / "raw/._mine.pth").write_bytes(b"macOS")
    done = prepare(script, [path.parent], tmp_path / "store")
    assert done.code == 0 and {t.subject for t in open_store(tmp_path / "store").trials} == {"S23"}, done.err
    (tmp_path / "empty").mkdir()
    assert "is a folder without .pth" in prepare(script, [tmp_path / "empty"], tmp_path / "none").error_line


@pytest.mark.parametrize("name", ["0_all_de.npy", "de.mat", "de.pth"])
def test_features_in_place_of_raw_eeg_are_called_so(script, tmp_path, name):
    if name.endswith(".pth"):
        torch.save(torch.zeros(8, 62, 5), tmp_path / name)
    else:
        np.save(open(tmp_path / name, "wb"), np.zeros((8, 62, 5)))  # noqa: SIM115
    line = prepare(script, [tmp_path / name], tmp_path / "store").error_line
    assert "raw" in line and ("not needed" in line or "features are made from it" in line) and name in line


def test_the_electrodes_are_the_authors_and_lie_in_five_regions():
    montage = load_description("EEGImageNet").montage
    assert len(ELECTRODES) == len(set(ELECTRODES)) == 62 and montage.electrodes == ELECTRODES
    things = load_description("THINGS").montage
    sizes = {things.region_names[k]: things.region_names.count(things.region_names[k]) for k in range(63)}
    assert sizes == {"frontal": 15, "central": 14, "parietal": 16, "temporal": 10, "occipital": 8}
