"""Kinds of files of pipelines 1 to 3, and of what all pipelines share: how a healthy one is made, and read."""

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tests.faults.damage import repack
from tests.faults.places import Places
from utils.errors import UserError


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    make : callable. (folder, places): writes healthy files.
    read : callable. (folder, places) → what they say; as the scripts read them.
    checksum : bool. Whether no damaged file may give another result.
    files : str. Patterns of those that are damaged, with blanks between.
    damage : callable, optional. The one way to damage them.
    aside : str. Why the kind is left out of what every change must pass: it is slow.
    """

    make: Callable
    read: Callable
    checksum: bool = False
    files: str = "*"
    damage: Callable | None = None
    aside: str = ""


def digest(value: object) -> str:
    """Tells one result from another: arrays, tensors, pictures, bytes, dataclasses, containers, plain values."""
    made = hashlib.sha256()

    def add(value: object) -> None:
        made.update(type(value).__name__.encode())
        if isinstance(value, bytes | bytearray | memoryview):
            made.update(value)
        elif isinstance(value, np.ndarray):
            made.update(f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=repr):
                add(key)
                add(value[key])
        elif isinstance(value, list | tuple | set):
            for each in sorted(value) if isinstance(value, set) else value:
                add(each)
        elif is_dataclass(value):
            add(vars(value))
        elif hasattr(value, "tobytes"):  # a picture
            made.update(f"{value.mode} {value.size}".encode() + value.tobytes())
        elif hasattr(value, "untyped_storage"):
            from utils.checkpoints import as_bytes

            made.update(f"{value.dtype} {tuple(value.shape)}".encode() + as_bytes(value))
        else:
            made.update(repr(value).encode(errors="surrogatepass"))
        made.update(b";")

    add(value)
    return made.hexdigest()


def trial(number: int, person: str = "A01", label: int | None = None):
    """A trial of a store."""
    from datasets.recording import Trial

    return Trial(f"{person}-T-r1-t{number:03d}", number % 4 if label is None else label, person, "T", 1, number + 1)


def row(index: int, at: Places):
    """A decoded trial of BCIC-IV-2a."""
    from stages.rows import Readout, Row, draw_what

    readouts = {"keyword": Readout(2, 0.25), "likelihood": Readout(1, 0.25, [0.1, 0.7, 0.15, 0.05])}
    made = Row(index, "A08", "E", 3, 12 + index, 2, "feet", readouts, text="Feet, “größe” \u2028 🦶")
    return draw_what(made, at.bcic, "keyword")


# -------- recordings


def read_recordings(description, files: Sequence[Path]) -> list:
    """Trials and counts of files, as prepare() has them from `prepare_file`."""
    from datasets.prepare import prepare_file
    from datasets.preprocessing import Preprocessing

    settings = Preprocessing(*description.window, description.reference)
    options = {name: choices[0] for name, (choices, _) in description.options.items()}
    found = []
    for path in files:
        kept, counts, _ = prepare_file(description, path, settings, None, options)
        found += [kept, sorted(counts.items(), key=repr)]
    return found


def make_2a(folder: Path, at: Places) -> None:
    from demo.bcic_like import DemoSize, write_bcic_like

    write_bcic_like(folder, DemoSize(runs=1, trials_per_run=2), 0, ("A01T.mat",))


def make_2a_packed(folder: Path, at: Places) -> None:
    """As BNCI's files are: each variable packed, an element of type 15."""
    make_2a(folder, at)
    content = (folder / "A01T.mat").read_bytes()
    packed = zlib.compress(content[128:])
    (folder / "A01T.mat").write_bytes(content[:128] + struct.pack("<II", 15, len(packed)) + packed)


def read_2a(folder: Path, at: Places) -> list:
    return read_recordings(at.bcic, [folder / "A01T.mat"])


def make_2b(folder: Path, at: Places) -> None:
    from demo.bcic_like import DemoSize, write_bcic2b_like

    write_bcic2b_like(folder, DemoSize(trials_per_run=2), 0, ("B01E.mat",))


def read_2b(folder: Path, at: Places) -> list:
    from datasets.description import load_description

    return read_recordings(load_description("BCICIV2b"), [folder / "B01E.mat"])


def make_gdf(version: int) -> Callable:
    """The competition's recording of unknown cues, and its labels."""

    def make(folder: Path, at: Places) -> None:
        import scipy.io

        from tests.copies import write_gdf

        x = 20 * np.random.default_rng(0).standard_normal((25, 6000))
        x[:, 2900:3000] = np.nan
        events = [(0, 32766), (500, 768), (1000, 783), (3000, 32766), (3500, 768), (3500, 1023), (4000, 783)]
        write_gdf(folder / "A01E.gdf", x, events, version=version)
        scipy.io.savemat(folder / "A01E.mat", {"classlabel": np.array([[1.0], [4.0]])})

    return make


def read_gdf(folder: Path, at: Places) -> list:
    return read_recordings(at.bcic, at.bcic.files(folder))


FEATURES = {part: [f"{part}_images/{k // 2}_a/{k}.jpg" for k in range(8)] for part in ("training", "test")}


def make_features(folder: Path, at: Places) -> None:
    """CLIP embeddings as ATM and NICE publish them."""
    import torch

    rows = np.repeat(np.random.default_rng(0).standard_normal((4, 6)), 2, axis=0).astype(np.float32)
    torch.save({"img_features": torch.from_numpy(rows), "text_features": torch.ones(4, 6)}, folder / "train.pt")
    np.save(folder / "test.npy", rows)


def read_features(folder: Path, at: Places) -> list:
    from stages.clip_features import read_clip_features

    read = [read_clip_features([str(folder / name)], FEATURES) for name in ("train.pt", "test.npy")]
    return [sorted((k, v.tolist()) for k, v in of.items()) for pair in read for of in pair]


EVENTS = [(500, 1), (2000, 2), (3000, 3)]
STEM = "sub-01_ses-01_task-AVI_eeg"


def vi_signal() -> np.ndarray:
    """Eight seconds of 10 µV noise on 32 electrodes, with offsets that tell them apart."""
    return 10 * np.random.default_rng(0).standard_normal((32, 8000)) + np.arange(32)[:, None]


def make_bdf(folder: Path, at: Places) -> None:
    from demo.vi_like import write_bdf, write_tsv

    write_bdf(folder / f"{STEM}.bdf", vi_signal(), EVENTS)
    write_tsv(folder / f"{STEM[:-4]}_events.tsv", EVENTS)


def make_fif(folder: Path, at: Places) -> None:
    from demo.vi_like import write_fif, write_tsv

    write_fif(folder / f"{STEM}.fif", vi_signal(), EVENTS)
    write_tsv(folder / f"{STEM[:-4]}_events.tsv", EVENTS)


def make_edf(folder: Path, at: Places) -> None:
    """EDF+ with the events as annotations: 16-bit samples of 0.1 µV."""
    names, signal = [*at.vi.montage.electrodes, "EDF Annotations"], vi_signal()
    n, n_records, width = len(names), signal.shape[1] // 1000, 60

    def column(values, size):
        return "".join(f"{value:<{size}}" for value in values)

    fixed = f"{'0':8}{'X X X X':80}{'Startdate 01-JAN-2026 X X X':80}{'01.01.26':8}{'00.00.00':8}"
    fixed += f"{256 * (n + 1):<8}{'EDF+C':44}"
    header = (
        column(names, 16) + column([""] * n, 80) + column(["uV"] * (n - 1) + [""],
            8) + column([-3276.8] * (n - 1) + [-1], 8)
        + column([3276.7] * (n - 1) + [1], 8) + column([-32768] * n, 8) + column([32767] * n, 8) + column([""] * n, 80)
        + column([1000] * (n - 1) + [width], 8) + column([""] * n, 32)
    )  # fmt: skip
    records = []
    for k in range(n_records):
        told = f"+{k}\x14\x14\x00" + "".join(
            f"+{sample / 1000}\x150.004\x14{code}\x14\x00" for sample, code in EVENTS if sample // 1000 == k
        )
        counts = np.round(signal[:, 1000 * k : 1000 * (k + 1)] * 10).astype("<i2")
        records.append(counts.tobytes() + told.encode().ljust(2 * width, b"\0"))
    text = f"{fixed}{n_records:<8}{1:<8}{n:<4}{header}"
    (folder / f"{STEM}.edf").write_bytes(text.encode() + b"".join(records))


def make_vhdr(folder: Path, at: Places) -> None:
    """BrainVision's three files: 32-bit floats in microvolts."""
    channels = "\n".join(f"Ch{k}={label},,1,µV" for k, label in enumerate(at.vi.montage.electrodes, start=1))
    markers = "\n".join(f"Mk{k + 2}=Stimulus,S{code:3d},{sample + 1},1,0" for k, (sample, code) in enumerate(EVENTS))
    (folder / f"{STEM}.vhdr").write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={STEM}.eeg\nMarkerFile={STEM}.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\n"
        "NumberOfChannels=32\nSamplingInterval=1000\n[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n[Channel "
        f"Infos]\n{channels}\n"
    )
    (folder / f"{STEM}.vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={STEM}.eeg\n[Marker Infos]\nMk1=New Segment,,1,1,0\n{markers}\n"
    )
    (folder / f"{STEM}.eeg").write_bytes(vi_signal().T.astype("<f4").tobytes())


def make_set(folder: Path, at: Places, data=None) -> None:
    """EEGLAB's file, in one."""
    import scipy.io

    labels = np.array([(label,) for label in at.vi.montage.electrodes], dtype=[("labels", object)])
    events = np.array([(k + 1.0, str(code)) for k, code in EVENTS], dtype=[("latency", object), ("type", object)])
    eeg = {
        "setname": "", "nbchan": 32.0, "pnts": 8000.0, "trials": 1.0, "srate": 1000.0, "xmin": 0.0, "xmax": 8.0,
        "data": vi_signal().astype(np.float32) if data is None else data, "chanlocs": labels, "event": events,
        "icawinv": [],
        "icaweights": [], "icasphere": [], "epoch": [], "history": "",
    }  # fmt: skip
    scipy.io.savemat(folder / f"{STEM}.set", {"EEG": eeg}, appendmat=False)


def make_fdt(folder: Path, at: Places) -> None:
    """EEGLAB's file, with the samples beside it."""
    make_set(folder, at, f"{STEM}.fdt")
    (folder / f"{STEM}.fdt").write_bytes(vi_signal().T.astype("<f4").tobytes())


def read_vi(folder: Path, at: Places) -> list:
    return read_recordings(at.vi, at.vi.files(folder))


def make_zip(folder: Path, at: Places) -> None:
    """An article's archive, with a person's archive inside."""
    rng, inner = np.random.default_rng(0), io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as packed:
        for task in ("AVI", "FVI"):
            stem = f"sub-01/ses-01/eeg/sub-01_ses-01_task-{task}"
            packed.writestr(f"{stem}_eeg.bdf", rng.integers(0, 9, 9000, dtype=np.uint8).tobytes())
            packed.writestr(f"{stem}_events.tsv", "onset\tvalue\n0.5\t1\n" * 20)
    with zipfile.ZipFile(folder / "article.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("data/sub-01.zip", inner.getvalue(), zipfile.ZIP_STORED)
        packed.writestr("data/sub-02_ses-01_task-OVI_eeg.bdf", rng.integers(0, 9, 9000, dtype=np.uint8).tobytes())
        for name in list(at.vi.stimuli.values())[:2]:
            packed.write(at.stimuli / name, f"stimuli/{name}")
        packed.writestr("__MACOSX/._x", b"x")


def read_zip(folder: Path, at: Places) -> set:
    """Contents that the healthy archive has not: none, wherever a member may be missing now."""
    import prepare_data_vi

    raw, stimuli = folder / "out/raw", folder / "out/stimuli"
    args = SimpleNamespace(raw_dir=raw, stimuli_dir=stimuli, zip_path=folder / "article.zip", subjects=["S01", "S02"])
    prepare_data_vi.fetch(args)
    found = {digest(path.read_bytes()) for path in (folder / "out").rglob("*") if path.is_file()}
    return found - at.fresh.setdefault("zip", found)


# -------- stores


def make_store(folder: Path, at: Places) -> None:
    """Two of them: trials in pages of their own, and trials inside the tree's pages."""
    from tests.conftest import small_store

    small_store(folder / "long/processed_lmdb", at.bcic, ("A01", "A06", "A08"))
    small_store(folder / "short/processed_lmdb", at.bcic, ("A01", "A02", "A06", "A08"), trials=20, seconds=0.04)


def make_cbramod(folder: Path, at: Places) -> None:
    import lmdb

    rng, keys = np.random.default_rng(0), {split: [] for split in ("train", "val", "test")}
    with lmdb.open(str(folder), map_size=1 << 26) as env, env.begin(write=True) as txn:
        for k in range(12):
            key, split = f"A0{k % 3 + 1}T-{k // 3}-{k}", list(keys)[k % 3]
            sample = 20 * rng.standard_normal((22, 2, 200))
            record = {
                "sample": sample.astype([np.float32, np.float64][k % 2]),
                "label": [k % 4, np.int64(k % 4)][k % 2],
            }
            txn.put(key.encode(), pickle.dumps(record, protocol=2 + k % 4))
            keys[split].append(key)
        txn.put(b"__keys__", pickle.dumps(keys))
    (folder / "lock.mdb").unlink()


def read_stores(folder: Path, at: Places) -> list:
    """All trials by split, their labels and samples, and what a run says of the store."""
    from datasets.trials import load_splits

    found = []
    for path in sorted(file.parent for file in folder.rglob("data.mdb")):
        for mode, dataset in load_splits(path, at.bcic, "published").items():
            for one in dataset.trials:
                dataset.store.verify(one)
            found += [mode, dataset.trials, dataset.labels, dataset.facts, dataset.seen, dataset.store.listed]
            # behind the dash stands the number of the file's last transaction, which is no part of what was recorded
            found += [dataset.store.fingerprint.split("-")[0], [dataset.samples(one) for one in dataset.trials]]
    return found


THREE = ("B01T.mat", "B01E.mat", "B06E.mat")


def prepare_three(folder: Path) -> None:
    """Three files into a store."""
    from datasets import prepare
    from datasets.description import load_description
    from datasets.preprocessing import Preprocessing

    description = load_description("BCICIV2b")
    settings = Preprocessing(*description.window, description.reference)
    prepare.prepare(description, [folder / "raw" / name for name in THREE], folder / "processed_lmdb", settings, 1)


def make_unfinished(folder: Path, at: Places) -> None:
    """A store of which two files of three are there: somebody pressed Ctrl-C at the third."""
    from datasets import prepare
    from demo.bcic_like import DemoSize, write_bcic2b_like

    write_bcic2b_like(folder / "raw", DemoSize(trials_per_run=2), 0, THREE)
    whole = prepare.prepare_file

    def interrupted(description, path, *others):
        if path.name == THREE[2]:
            raise KeyboardInterrupt
        return whole(description, path, *others)

    prepare.prepare_file = interrupted
    try:
        prepare_three(folder)
    except KeyboardInterrupt:
        pass
    finally:
        prepare.prepare_file = whole


def read_unfinished(folder: Path, at: Places) -> list:
    """The store that the same command makes: it goes on, or begins anew."""
    from datasets.store import open_store

    prepare_three(folder)
    store = open_store(folder / "processed_lmdb")
    return [store.meta, store.trials, [store.read(one) for one in store.trials]]


# -------- caches


def small_dataset(folder: Path, at: Places):
    """Training trials of two people, in a store beside the cache."""
    from datasets.trials import TrialDataset
    from tests.conftest import small_store

    if not folder.exists():
        small_store(folder, at.bcic, ("A01", "A02"))
    return TrialDataset(folder, "train", "published", at.bcic)


def tokens(folder: Path, at: Places):
    import torch

    from stages.tokens import TokenCache

    dataset = small_dataset(folder / "processed_lmdb", at)
    return TokenCache(None, at.small_encoder, at.bcic.montage, "region").tokens(dataset, torch.device("cpu"))


def make_tokens(folder: Path, at: Places) -> None:
    at.fresh["tokens"] = tokens(folder, at)
    tokens(folder, at)
    used = {
        path
        for path in (folder / "token_cache").glob("*.safetensors")
        if _n_tokens(path) == at.fresh["tokens"].shape[1]
    }
    for path in set((folder / "token_cache").glob("*.safetensors")) - used:
        path.unlink()  # of other poolings, which nobody asks for here


def _n_tokens(path: Path) -> int:
    from safetensors.torch import load_file

    return load_file(path)["tokens"].shape[1]


def read_tokens(folder: Path, at: Places) -> object:
    return as_fresh(tokens(folder, at), at.fresh["tokens"])


def as_fresh(found, fresh) -> object:
    """One word where tensors are what is computed anew, up to rounding."""
    import torch

    return "fresh" if found.shape == fresh.shape and torch.allclose(found, fresh, atol=1e-5) else found


def clip_targets(folder: Path, at: Places):
    from models.eeg_clip_mapper import CLIPImageTargetBuilder

    return CLIPImageTargetBuilder(str(at.pth / "clip"), folder).build(at.pictures)


def make_clip_targets(folder: Path, at: Places) -> None:
    at.fresh["clip"] = clip_targets(folder, at)


def read_clip_targets(folder: Path, at: Places) -> object:
    return as_fresh(clip_targets(folder, at), at.fresh["clip"])


# -------- weights


def make_csbrain(folder: Path, at: Places) -> None:
    shutil.copy(at.pth / "CSBrain.pth", folder)


def make_csbrain_old(folder: Path, at: Places) -> None:
    """As PyTorch before 1.6 wrote it: no zip file, no checksums."""
    import torch

    content = torch.load(at.pth / "CSBrain.pth", weights_only=True)
    torch.save(content, folder / "CSBrain.pth", _use_new_zipfile_serialization=False)


def read_csbrain(folder: Path, at: Places) -> str:
    from models.token_encoders import load_encoder
    from utils.checkpoints import fingerprint

    montage = at.bcic.montage
    encoder = load_encoder(
        "csbrain", str(folder / "CSBrain.pth"), electrodes=montage.electrodes, brain_regions=montage.brain_regions,
        sorted_indices=montage.sorted_indices, n_times=1000, sfreq=250.0,
    )  # fmt: skip
    return fingerprint(encoder)


def make_text(folder: Path, at: Places) -> None:
    shutil.copy(at.trained / "projection_epoch2.pth", folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / "lora_epoch2").mkdir(exist_ok=True)
        shutil.copy(at.trained / "lora_epoch2" / name, folder / "lora_epoch2" / name)


def read_text(folder: Path, at: Places) -> list:
    import torch

    from stages.checkpoints import check_dataset, find_text_checkpoint, load_text_model, read_run_checkpoint
    from utils.checkpoints import fingerprint

    path, lora_dir = find_text_checkpoint(folder / "projection_epoch2.pth", None)
    path, checkpoint = read_run_checkpoint(path, "text")
    check_dataset(path, checkpoint, at.bcic)
    llm, cpu = str(at.pth / "TinyLlama-1.1B-Chat-v1.0"), torch.device("cpu")
    model = load_text_model(checkpoint, path, lora_dir, llm, False, torch.float32, cpu, at.bcic, 200)
    model.read_prefix()
    texts, _ = model.decode(torch.ones(1, 4, 200), at.bcic.canonical, 8)
    return [fingerprint(model), texts, {k: v for k, v in checkpoint.items() if k != "llm"}]


def read_text_whole(folder: Path, at: Places) -> list:
    """What generate.py makes of a checkpoint."""
    return decoded_by(
        "generate", folder, datasets_dir=at.store, foundation_dir=at.pth / "CSBrain.pth",
        projection_dir=folder / "projection_epoch2.pth", llm=at.pth / "TinyLlama-1.1B-Chat-v1.0", max_new_tokens=8,
    )  # fmt: skip


def decoded_by(script: str, folder: Path, **given) -> list:
    """Rows of a generating script's own main."""
    import importlib

    from stages.rows import read_rows

    module, out, cache = importlib.import_module(script), folder / "out", folder / "cache"
    cache.mkdir()
    for path in (given["datasets_dir"].parent / "token_cache").glob("tokens-*"):
        (cache / path.name).symlink_to(path)
    given |= {"stage": "decode", "output_dir": out, "cuda": -1, "num_samples": 2, "cache_dir": cache}
    before, sys.argv = sys.argv, [script, *(part for k, v in given.items() for part in (f"--{k}", str(v)))]
    try:
        args = module.parse_args()
    finally:
        sys.argv = before
    module.main(args)
    return read_rows(out / "decoded.jsonl")


def make_mapper(folder: Path, at: Places) -> None:
    shutil.copy(at.mapped / "mapper_epoch3.pth", folder)


def read_mapper(folder: Path, at: Places) -> list:
    import torch

    from stages.checkpoints import check_dataset, load_mapper_model, read_run_checkpoint
    from stages.rows import mapper_readouts
    from utils.checkpoints import fingerprint

    path, checkpoint = read_run_checkpoint(folder / "mapper_epoch3.pth", "mapper")
    check_dataset(path, checkpoint, at.vi)
    model = load_mapper_model(checkpoint, path, torch.device("cpu"))
    rows = mapper_readouts(model(torch.ones(2, checkpoint["settings"]["n_tokens"], 200)), checkpoint["prototypes"])
    return [fingerprint(model), [row["head"].label for row in rows], checkpoint]


def read_mapper_whole(folder: Path, at: Places) -> list:
    """What generate_vi_eeg2img.py makes of a checkpoint."""
    return decoded_by(
        "generate_vi_eeg2img", folder, datasets_dir=at.vi_store, foundation_dir=at.pth / "CSBrain.pth",
        mapper_path=folder / "mapper_epoch3.pth", stimuli_dir=at.stimuli, conditioning="embedding",
    )  # fmt: skip


def make_run(folder: Path, at: Places) -> None:
    for name in ("run.json", "last.pth"):
        shutil.copy(at.trained / name, folder)
    at.fresh["run"] = json.loads((folder / "run.json").read_text())


def read_run(folder: Path, at: Places) -> dict:
    """The state that --resume goes on from."""
    from stages.runs import Run

    run, settings = Run(folder, ["projection_epoch{}.pth"], "keyword"), at.fresh["run"]["arguments"] | {"resume": True}
    run.open(settings, {"model_dir"}, at.fresh["run"]["depends_on"])
    return run.state


def make_results(folder: Path, at: Places) -> None:
    shutil.copy(at.trained / "results.json", folder)
    shutil.copy(at.trained / "projection_epoch1.pth", folder)


def read_results(folder: Path, at: Places) -> list:
    """Which checkpoint a run's folder means, and whether it can be read."""
    from stages.checkpoints import check_dataset, find_text_checkpoint, read_run_checkpoint

    path, _ = find_text_checkpoint(folder, None)
    if path.name != f"projection_epoch{at.fresh.setdefault('best', path.name)[16:-4]}.pth":
        check_dataset(*read_run_checkpoint(path, "text"), at.bcic)
    return [path.name]


def copied(name: str, leave_out: Sequence[str] = ()) -> Callable:
    """A maker that copies a folder of tiny models."""

    def make(folder: Path, at: Places) -> None:
        shutil.copytree(at.pth / name, folder / name, ignore=shutil.ignore_patterns(*leave_out))

    return make


def make_sd(folder: Path, at: Places) -> None:
    """With the tokenizer in the files that the published models have."""
    copied("stable-diffusion", ("tokenizer.json",))(folder, at)
    vocabulary = json.loads((at.pth / "stable-diffusion/tokenizer/tokenizer.json").read_text())["model"]["vocab"]
    (folder / "stable-diffusion/tokenizer/vocab.json").write_text(json.dumps(vocabulary))
    (folder / "stable-diffusion/tokenizer/merges.txt").write_text("#version: 0.2\n")


def read_llm(folder: Path, at: Places) -> list:
    import torch

    from models.eeg_llm import EEGLanguageModel, EEGProjection, load_language_model

    cpu = torch.device("cpu")
    language_model, tokenizer = load_language_model(str(folder / "TinyLlama-1.1B-Chat-v1.0"), cpu, False, torch.float32)
    torch.manual_seed(0)
    projection = EEGProjection(language_model.get_input_embeddings().weight.shape[1])
    prompts = at.bcic.system_prompt, at.bcic.user_prompt
    model = EEGLanguageModel(language_model, tokenizer, *prompts, projection).to(cpu).eval()
    model.read_prefix()
    return [model.before_ids, *model.decode(torch.ones(1, 4, 200), at.bcic.canonical, 8)]


def read_images(name: str) -> Callable:
    def read(folder: Path, at: Places) -> object:
        import torch

        from models.image_generator import EEGImageGenerator

        generator = EEGImageGenerator(str(folder / name), torch.device("cpu"), 2, None, 64)
        return generator.generate(at.vi.image_prompts[0], 0)

    return read


def read_prompts(folder: Path, at: Places) -> list:
    """What the mapper is trained towards, of an image model."""
    from models.eeg_clip_mapper import CLIPTextTargetBuilder

    return list(CLIPTextTargetBuilder(str(folder / "amused"), folder / "cache").build(["a dog", "a bird"]))


def read_clip(folder: Path, at: Places) -> object:
    from models.eeg_clip_mapper import CLIPImageTargetBuilder

    return CLIPImageTargetBuilder(str(folder / "clip"), folder / "cache").build(at.pictures)


# -------- pictures


def make_photos(folder: Path, at: Places) -> None:
    for suffix, settings in (("jpg", {"quality": 90}), ("png", {}), ("webp", {}), ("gif", {}), ("bmp", {})):
        at.pictures[0].resize((48, 48)).save(folder / f"photo.{suffix}", **settings)


def read_photos(folder: Path, at: Places) -> list:
    from stages.pictures import read_photo

    return [read_photo(path) for path in sorted(folder.glob("photo.*"))]


RECIPE = {"model": "a model", "steps": 4, "guidance": 7.5, "size": 64}


def make_drawn(folder: Path, at: Places) -> None:
    from stages.pictures import PictureFolder

    drawn = PictureFolder(folder, [row(7, at)], RECIPE, 0)
    drawn.keep(row(7, at), at.pictures[1].resize((64, 64)))


def read_drawn(folder: Path, at: Places) -> list:
    """The picture after a repeated run: it was there, or is drawn anew."""
    from PIL import Image

    from stages.pictures import PictureFolder, summary_grid

    drawn = PictureFolder(folder, [row(7, at)], RECIPE, 0)
    drawn.draw_missing(lambda rows, seeds: [at.pictures[1].resize((64, 64)) for _ in rows], 1)
    drawn.finish(lambda _: Image.new("RGB", (32, 32)))
    with Image.open(drawn.path("generated", row(7, at))) as picture:
        return [picture.convert("RGB"), summary_grid([drawn.path("comparison", row(7, at))])]


# -------- what was decoded


def make_rows(folder: Path, at: Places) -> None:
    shutil.copy(at.trained / "decoded_test.jsonl", folder / "decoded.jsonl")


def read_rows_of(folder: Path, at: Places) -> list:
    from stages.rows import read_rows

    return read_rows(folder / "decoded.jsonl", at.bcic.classes)


def make_rows_unsigned(folder: Path, at: Places) -> None:
    """Rows of a run of before there were checksums."""
    lines = [asdict(row(k, at)) for k in range(3)]
    (folder / "decoded.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_rows_unsigned(folder: Path, at: Places) -> list:
    """Rows, their scores as evaluate.py prints them, and what stage `images` would draw."""
    from evaluation import decoded_runs, figures, tables
    from stages.pictures import PictureFolder, Stimuli, comparison, judged_class
    from stages.rows import read_rows

    run = decoded_runs.read_run(folder)
    told = [tables.group_line([run], name, []) | {"run": ""} for name in run.rows[0].readouts]
    told = [tables.markdown(*tables.results_table(told)), tables.by_person(run.rows, run.main_readout)]
    run.name = "run"
    figures.confusion_figure(run, folder / "out/confusion.png")
    figures.reliability_figure(run, folder / "out/reliability.png")
    rows = read_rows(folder / "decoded.jsonl", at.bcic.classes)
    stimuli = Stimuli(at.bcic.stimuli, len(at.bcic.classes), at.stimuli)
    for one in rows:
        comparison(stimuli.of(one), at.pictures[0], *judged_class(one))
    return [rows, told, PictureFolder(folder / "out", rows, RECIPE, 0).recipes]


def make_kept_rows(folder: Path, at: Places) -> None:
    """Rows as they lie under docs/results/, with their run's record."""
    from evaluation import decoded_runs

    run = decoded_runs.read_run(at.trained)
    run.record = {"arguments": {"window": [0.0, 2.0], "regions": ["central"], "downstream_dataset": "BCICIV2a",
    "datasets_dir": "store",
                                "seed": 0, "protocol": "published"}, "fixed": {"window": [0.0, 2.0]},
                                "depends_on": {"store": "s"}}  # fmt: skip
    decoded_runs.keep_rows(run, folder / "kept")


def read_kept_rows(folder: Path, at: Places) -> list:
    from evaluation import decoded_runs, tables

    run = decoded_runs.read_run(folder / "kept")
    groups = decoded_runs.belong_together([run])
    line = tables.group_line(groups[0], run.main_readout, []) | tables.linear_probe(groups[0], [run])
    told = [decoded_runs.families(groups, by) for by in ("window", "regions")]
    told += [decoded_runs.description_of(run), str(run.recorded_place("datasets_dir")), tables.results_table([line])]
    return [run.rows, decoded_runs.group_names(groups), decoded_runs.file_names([run]), told]


def pieces(folder: Path) -> list:
    """What was decoded in the end: batches from the file, and those behind it."""
    import torch

    from stages.decoding import DecodedPieces

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    model.before_ids, model.after_ids, model.mirror = torch.tensor([[1, 2]]), torch.tensor([[3]]), None
    dataset = SimpleNamespace(trials=[trial(k) for k in range(8)], tokens=None, changes=lambda trials: {})
    kept, found = DecodedPieces(folder, model, dataset, range(8), precision="fp32"), []
    for number in range(4):
        batch = kept.get(number)
        if batch is None:
            batch = [(f"batch {number}, trial {k}", [0.25 + number / 100, 0.75]) for k in range(2)]
            if number < 3:
                kept.add(batch)
        found += [(text, list(probabilities)) for text, probabilities in batch]
    return found


def make_pieces(folder: Path, at: Places) -> None:
    pieces(folder)


def read_pieces(folder: Path, at: Places) -> list:
    return pieces(folder)


def make_embeddings(folder: Path, at: Places) -> None:
    import torch

    from stages.embeddings import write_embeddings
    from stages.rows import write_rows

    rows, made = [row(k, at) for k in (3, 5)], torch.Generator().manual_seed(0)
    states = {r.index: (torch.randn(1, 77, 8, generator=made), torch.randn(1, 8, generator=made)) for r in rows}
    write_embeddings(folder / "embeddings.safetensors", rows, states, "a model")
    write_rows(rows, folder / "rows.jsonl")


def read_embeddings_of(folder: Path, at: Places) -> dict:
    from stages.embeddings import read_embeddings
    from stages.rows import read_rows

    return read_embeddings(folder / "embeddings.safetensors", read_rows(folder / "rows.jsonl"), "a model")


# -------- notes


def make_control(folder: Path, at: Places) -> None:
    shutil.copy(at.trained / "decoded_test.jsonl", folder)
    note = json.loads((at.trained / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(note | {"arguments": note["arguments"] | {"shuffle_labels": True}}))


def read_control(folder: Path, at: Places) -> list:
    """A control of a run on the same trials; with no suffix, its folder is the run's."""
    from evaluation import decoded_runs

    run = decoded_runs.read_run(folder)
    return [
        decoded_runs.read_control(run, "").rows,
        decoded_runs.group_name([run]),
        len(decoded_runs.belong_together([run, run])),
    ]


def make_note(folder: Path, at: Places) -> None:
    import prepare_demo

    prepare_demo.same_settings(folder, {"seed": 0, "runs": 6, "trials_per_run": 12, "trials_per_class": 3})


def read_note(folder: Path, at: Places) -> bytes:
    make_note(folder, at)
    return (folder / "demo.json").read_bytes()


def make_lock(folder: Path, at: Places) -> None:
    import socket

    (folder / ".lock").write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": "now"}))


def read_lock(folder: Path, at: Places) -> str:
    """What a second run says while the lock is held."""
    import fcntl

    from utils import locks

    locks.PATIENCE = 0.1
    held = os.open(folder / ".lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with locks.only_one(folder / ".lock"):
            return "both"
    except UserError as error:
        return "refused" if str(folder) in str(error) else str(error)


# -------- all kinds

LLM = "TinyLlama-1.1B-Chat-v1.0"
KINDS = {
    "2a .mat": Kind(make_2a, read_2a),
    "2a .mat, packed": Kind(make_2a_packed, read_2a),
    "2b .mat": Kind(make_2b, read_2b),
    "2a .gdf, version 1, and labels": Kind(make_gdf(1), read_gdf),
    "2a .gdf, version 2, and labels": Kind(make_gdf(2), read_gdf),
    "CLIP features of others": Kind(make_features, read_features),
    "vi .bdf": Kind(make_bdf, read_vi),
    "vi .edf": Kind(make_edf, read_vi),
    "vi .fif": Kind(make_fif, read_vi),
    "vi .vhdr": Kind(make_vhdr, read_vi),
    "vi .set": Kind(make_set, read_vi),
    "vi .set and .fdt": Kind(make_fdt, read_vi),
    "zip of recordings": Kind(make_zip, read_zip, checksum=True),
    "store": Kind(make_store, read_stores, checksum=True, files="data.mdb"),
    "unfinished store": Kind(make_unfinished, read_unfinished, checksum=True, files="data.mdb"),
    "CBraMod's LMDB": Kind(make_cbramod, read_stores),
    "token cache": Kind(make_tokens, read_tokens, checksum=True, files="tokens-*"),
    "CLIP targets": Kind(make_clip_targets, read_clip_targets, checksum=True),
    "CSBrain.pth": Kind(make_csbrain, read_csbrain, checksum=True),
    "CSBrain.pth, old format": Kind(make_csbrain_old, read_csbrain),
    "CSBrain.pth, repacked": Kind(make_csbrain, read_csbrain, damage=repack),
    "text checkpoint": Kind(make_text, read_text, checksum=True),
    "text checkpoint, repacked": Kind(make_text, read_text_whole, files="*.pth", damage=repack),
    "mapper checkpoint": Kind(make_mapper, read_mapper, checksum=True),
    "mapper checkpoint, repacked": Kind(make_mapper, read_mapper_whole, damage=repack),
    "last.pth, run.json": Kind(make_run, read_run, checksum=True),
    "results.json": Kind(make_results, read_results, files="results.json"),
    "language model": Kind(copied(LLM), read_llm),
    "stable-diffusion": Kind(make_sd, read_images("stable-diffusion")),
    "amused": Kind(copied("amused"), read_images("amused")),
    "amused, for reading": Kind(copied("amused", ("transformer", "vqvae")), read_prompts),
    "CLIP": Kind(copied("clip", ("tokenizer*",)), read_clip),
    "photos": Kind(make_photos, read_photos),
    "drawn picture": Kind(make_drawn, read_drawn, checksum=True),
    "decoded.jsonl": Kind(make_rows, read_rows_of, checksum=True),
    "decoded.jsonl, unsigned": Kind(make_rows_unsigned, read_rows_unsigned),
    "kept rows": Kind(make_kept_rows, read_kept_rows, checksum=True, files="*.gz"),
    "kept rows' run.json": Kind(make_kept_rows, read_kept_rows, files="run.json"),
    "decoded pieces": Kind(make_pieces, read_pieces, checksum=True, files=".decoded-*"),
    "embeddings": Kind(make_embeddings, read_embeddings_of, checksum=True, files="embeddings*"),
    "a control's run.json": Kind(make_control, read_control, files="run.json"),
    "demo.json": Kind(make_note, read_note),
    "lock": Kind(make_lock, read_lock, files=".lock"),
}
