"""Kinds of files of pipelines 4 to 6, of recordings of one's own, and of what scripts read of each other."""

import contextlib
import gzip
import importlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluation import audit_run
from evaluation.decoded_runs import read_run
from tests.conftest import flat
from tests.faults import kinds
from tests.faults.damage import enlarge, long_picture, repack, repickle, smuggle
from tests.faults.kinds import EVENTS, LLM, STEM, Kind, as_fresh, make_bdf, make_edf, make_set, make_vhdr, vi_signal
from tests.faults.places import Places
from utils.errors import UserError
from utils.paths import ROOT

ASSETS = ROOT / "demo/assets"
CLIP = ASSETS / "clip"


def printed(script: str, *places: object, out: io.StringIO | None = None, **flags: object) -> str:
    """What a script's own main prints, in `out` even where it ends with an error."""
    module, before, out = importlib.import_module(script), sys.argv, out or io.StringIO()
    sys.argv = [script, *map(str, places), *flat(flags)]
    try:
        with contextlib.redirect_stdout(out):
            module.main(module.parse_args())
    finally:
        sys.argv = before
    return out.getvalue()


def cpu():
    import torch

    return torch.device("cpu")


def stored(folder: Path) -> list:
    """All that a store holds, but for where it comes from."""
    from datasets.store import open_store

    store = open_store(folder)
    facts = {name: store.meta.get(name) for name in ("electrodes", "classes", "units", "sfreq", "granularities")}
    return [facts, store.trials, [store.read(one) for one in store.trials]]


# -------- recordings of seen images


def make_things_raw(folder: Path, at: Places) -> None:
    """One person's first session in the authors' layout, and their list of images."""
    from demo.things_like import ThingsDemoSize, draw_images, write_things_like

    size = ThingsDemoSize(people=1, test_concepts=70, images=1, test_repetitions=1, effect=0.5)
    paths, rng = draw_images(folder / "images", size, 0), np.random.default_rng(0)
    drives = ({part: rng.standard_normal((len(of), n)) for part, of in paths.items()} for n in (8, 4))
    write_things_like(folder / "raw", *drives, size, 0)
    (folder / "images/image_metadata.npy").rename(folder / "raw/image_metadata.npy")
    shutil.rmtree(folder / "images")
    for session in (2, 3, 4):
        shutil.rmtree(folder / f"raw/sub-01/ses-{session:02d}")
    path = folder / "raw/sub-01/ses-01/raw_eeg_test.npy"  # column by column, as some tools have it
    content = np.load(path, allow_pickle=True).item()
    np.save(path, content | {"raw_eeg_data": np.asfortranarray(content["raw_eeg_data"])})


def make_things_cut(layout: str, by_row: bool = False) -> Callable:
    """17 electrodes at 100 Hz, as others cut them. by_row : a row a trial, as UBP's files have it."""

    def make(folder: Path, at: Places) -> None:
        from tests.datasets.test_things import cut_files

        (folder / "raw").mkdir()
        names = {"train": [f"{k:05d}_t{k}" for k in range(4)], "test": [f"{k:05d}_u{k}" for k in range(3)]}
        metadata = {f"{part}_img_concepts": of for part, of in names.items()}
        metadata |= {f"{part}_img_files": [f"{name[6:]}_01b.jpg" for name in of] for part, of in names.items()}
        np.save(folder / "raw/image_metadata.npy", metadata)
        cut_files(folder, layout, 17, 100, np.arange(-20, 80) / 100, by_row)
        (folder / "raw/image_metadata.npy").rename(folder / layout / "image_metadata.npy")
        (folder / layout).rename(folder / "files")

    return make


def read_things(place: str, **flags: object) -> Callable:
    def read(folder: Path, at: Places) -> list:
        places = {"raw_dir": folder / place, "images_dir": folder / "images", "lmdb_dir": folder / "out/store"}
        printed("prepare_data_things", **places, skip_download=True, subjects=[1], **flags)
        return stored(folder / "out/store")

    return read


def make_imagenet(folder: Path, at: Places) -> None:
    from tests.datasets.test_eeg_imagenet import LABELS, items_of, save

    save(folder / "one.pth", items_of([0], per_class=1))
    (folder / "names.txt").write_text("".join(f"{label} thing {k}, other\n" for k, label in enumerate(LABELS)))


def read_imagenet(folder: Path, at: Places) -> list:
    places = {"pth_path": folder / "one.pth", "class_names": folder / "names.txt", "lmdb_dir": folder / "out/store"}
    printed("prepare_data_imagenet", **places, images_dir=folder / "none")
    return stored(folder / "out/store")


# -------- recordings of one's own


def make_gdf_of_own(folder: Path, at: Places) -> None:
    from tests.copies import write_gdf

    events = [(sample // 4, code) for sample, code in EVENTS]
    names = list(at.vi.montage.electrodes)
    write_gdf(folder / f"{STEM}.gdf", vi_signal()[:, ::4], events, sfreq=250, names=names, unit=None)


def make_fif_packed(folder: Path, at: Places) -> None:
    from tests.faults.kinds import make_fif

    make_fif(folder, at)
    path = folder / f"{STEM}.fif"
    (folder / f"{STEM}.fif.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def make_table(packed: bool) -> Callable:
    """What a headband writes."""

    def make(folder: Path, at: Places) -> None:
        from tests.readers.test_headbands import even_times, rows

        text = rows(even_times()[:1000] + 1e5, even_times()[:1000], marks=[(256, 1), (512, 2)]).encode()
        path = folder / f"{STEM}.csv{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(text) if packed else text)

    return make


def read_own(folder: Path, at: Places) -> list:
    """What a recording holds, and its trials."""
    from datasets import own, own_sources
    from readers.recordings import TABLES, suffix_of

    path = next(p for p in sorted(folder.glob(f"{STEM}.*")) if suffix_of(p) and p.suffix not in (".eeg", ".tsv"))
    is_table = suffix_of(path) in TABLES
    (file,) = own_sources.pattern_files(f"{folder}/{path.name}")
    electrodes = ("TP9", "AF7") if is_table else at.vi.montage.electrodes
    class_of = {f"{before}{k}": k - 1 for k in (1, 2, 3) for before in ("", "S  ", "Stimulus/S  ")}
    own.common_electrodes([own.recording_facts(file, own.Reading())], [file], electrodes)  # it refuses what has others
    how = own.Reading(electrodes, 256.0, class_of, (0.0, 1.0), trigger="Marker0" if is_table else None)
    return [vars(one) for one in own.recordings(file, how)]


def make_bids(folder: Path, at: Places) -> None:
    """A person; a table of events above the recording, another of channels."""
    from demo.vi_like import MONTAGE, write_bdf

    (folder / "dataset_description.json").write_text(json.dumps({"Name": "own", "BIDSVersion": "1.8.0"}))
    place = folder / "sub-P1/eeg/sub-P1_task-x_eeg.bdf"
    place.parent.mkdir(parents=True)
    write_bdf(place, vi_signal()[:, :5000], EVENTS)
    place.with_suffix(".json").write_text(json.dumps({"TaskName": "x", "SamplingFrequency": 1000}))
    (folder / "task-x_events.tsv").write_text("onset\tduration\ttrial_type\n0.5\t0\ta\n2\t0\tb\n3\t0\ta\n")
    kinds = [f"{name}\tEEG\tuV\n" for name in MONTAGE.electrodes]
    (folder / "task-x_channels.tsv").write_text("name\ttype\tunits\n" + "".join(kinds))


def read_bids(folder: Path, at: Places) -> list:
    flags = {"window": [0, 1], "lmdb_dir": folder / "out/store", "workers": 1}
    printed("prepare_data_own", f"bids:{folder}", **flags)
    return stored(folder / "out/store")


WORDS = """system_prompt = "Say what was imagined."
user_prompt = "EEG: {eeg}"

[classes."left hand"]
keywords = ["left"]
sentences = ["The person imagines the left hand.", "It is the left hand."]
prompt = "a left hand"
"""


def make_words(folder: Path, at: Places) -> None:
    import tomllib

    text = WORDS.replace("left hand", at.bcic.classes[0])
    (folder / "words.toml").write_text(text)
    (folder / "words.json").write_text(json.dumps(tomllib.loads(text)))


def read_words_files(folder: Path, at: Places) -> list:
    from datasets.store import read_words

    paths = sorted(folder.glob("words.*"))
    return [at.bcic.with_words(read_words(path), str(path)).as_record() for path in paths]


# -------- checkpoints


def copy_checkpoints(folder: Path, at: Places) -> None:
    """The best epoch of a run of every kind."""
    for run in (at.runs / "ubp", *sorted(path for path in at.steps.iterdir() if path.is_dir())):
        if not run.name.endswith("_shuffled"):
            best = json.loads((run / "results.json").read_text())["best_epoch"]
            (folder / run.name).mkdir()
            shutil.copy(next(run.glob(f"*_epoch{best}.pth")), folder / run.name)
    from utils.checkpoints import read_checkpoint

    prior = read_checkpoint(next((folder / "prior").glob("*.pth")))
    at.fresh["prior"] = prior["encoder"], prior["clip"], prior["settings"]["dim"]


def copy_checkpoint_of(run: str) -> Callable:
    def make(folder: Path, at: Places) -> None:
        copy_checkpoints(folder, at)
        for path in folder.iterdir():
            if path.name != run:
                shutil.rmtree(path)

    return make


def read_checkpoint_of(run: str) -> Callable:
    """What the next script makes of a checkpoint: of an encoder what it gives, of others their weights."""

    def read(folder: Path, at: Places) -> list:
        from stages.checkpoints import read_adapter, read_prior, read_vae
        from utils.checkpoints import fingerprint

        (path,) = (folder / run).glob("*.pth")
        encoder, clip, width = at.fresh["prior"]
        if run == "prior":
            return [fingerprint(read_prior(path, encoder, clip, width)[0])]
        if run == "caption":
            return [fingerprint(read_adapter(path, encoder, str(ASSETS / "captioner"), width)[0])]
        if run == "vae":
            model, checkpoint = read_vae(path)
            return [fingerprint(model), checkpoint["seen"]]
        return embedded(path, at)

    return read


def embedded(path: Path, at: Places, cache: Path | None = None) -> list:
    """What a run's encoder gives for three test images."""
    from datasets.repetitions import repetitions
    from stages.clip_runs import clip_part, open_clip_run

    run = open_clip_run(path, at.things / "processed_lmdb", "test", "", cache, cpu())
    return [clip_part(run, repetitions(run.dataset)[:3], cpu()), run.people, run.images]


def make_second_form(folder: Path, at: Places) -> None:
    for name in ("model.safetensors", "config.json", "results.json"):
        shutil.copy(at.runs / "ubp" / name, folder)


def make_published(folder: Path, at: Places) -> None:
    """UBP's weights under the names that its repository gives them."""
    import torch

    from models.eeg_encoders import UBP

    torch.manual_seed(0)
    theirs = {"project.first.": "brain.model.0.", "project.second.": "brain.model.1.f.1.",
              "project.norm.": "brain.model.2."}  # fmt: skip
    state = UBP(63, 100, 768).state_dict()
    renamed = {next(new + key.removeprefix(old) for old, new in theirs.items() if key.startswith(old)): value
               for key, value in state.items()}  # fmt: skip
    torch.save({"state_dict": renamed}, folder / "ubp.pth")


def read_published(folder: Path, at: Places) -> list:
    import torch

    from datasets.description import load_description
    from datasets.trials import TrialDataset
    from stages.clip_runs import open_published

    dataset = TrialDataset(at.things / "processed_lmdb", "test", "within:sub-01", load_description("THINGS"))
    model, dataset = open_published([folder / "ubp.pth"], "ubp", "develop", dataset, [], cpu())
    with torch.no_grad():
        return [model(torch.as_tensor(dataset[0]["x"])[None])]


def make_facts(folder: Path, at: Places) -> None:
    """What a trained ControlNet says of itself."""
    from utils.hub import model_identity

    facts = {"seen": ["training_images/a.png"], "image_model": model_identity(str(at.models / "sd"))}
    (folder / "facts.json").write_text(json.dumps(facts))


def read_facts(folder: Path, at: Places) -> str:
    from stages.checkpoints import check_controlnet

    check_controlnet(str(folder), str(at.models / "sd"), ["test_images/b.png"])
    return "fits"


# -------- models of others


def copied_asset(name: str) -> Callable:
    def make(folder: Path, at: Places) -> None:
        shutil.copytree(ASSETS / name, folder / name)

    return make


def opened(paths: Sequence[Path]) -> list:
    from models.clip_targets import read_image

    return [read_image(path) for path in paths]


def read_captioner(folder: Path, at: Places) -> list:
    from models.captioner import Captioner

    return Captioner(str(folder / "captioner"), cpu(), beams=2, max_tokens=4)(opened(at.seen_pictures[:1]))


def make_vision(folder: Path, at: Places) -> None:
    from tests.seen_images import save_model

    save_model(folder / "dino", "Dinov2", "BitImageProcessorPil")


def read_vision(folder: Path, at: Places) -> list:
    from models.vision import load_vision

    return [load_vision(str(folder / "dino"), (1, 3), (0.0, 2.0))(opened(at.seen_pictures[:2]))]


def read_convnet(folder: Path, at: Places) -> list:
    from evaluation.image_networks import feature_networks

    networks, _ = feature_networks(folder, str(CLIP), str(folder / "classifier"))
    return [networks[name](opened(at.seen_pictures[:2])) for name in networks]


def read_sentences(folder: Path, at: Places) -> list:
    """The text tower of a CLIP, which sentences are ranked by."""
    from models.clip_targets import sentence_targets

    return [sentence_targets(str(folder / "clip"), ["a red star", "a dog"], folder / "out")]


def make_vae(folder: Path, at: Places) -> None:
    """What latents of images are made with: of an image model the VAE, and the UNet's size."""
    for name in ("vae", "unet/config.json", "model_index.json"):
        source, target = at.models / "sd" / name, folder / "sd" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def read_vae_of_images(folder: Path, at: Places) -> list:
    from models.clip_targets import vae_latent_targets

    return [vae_latent_targets(str(folder / "sd"), at.seen_pictures[:1], folder / "out")]


def make_llm_config(folder: Path, at: Places) -> None:
    shutil.copy(at.pth / LLM / "config.json", folder)


def read_llm_layers(folder: Path, at: Places) -> list:
    """Which layers of a language model get LoRA; its config.json alone is read."""
    from models.eeg_llm import lora_targets

    return lora_targets(str(folder), None)


def make_drawing(folder: Path, at: Places) -> None:
    """Decoded trials of seen images, and the models that draw them."""
    from tests.test_pictures_of_seen_images import drawing

    for name, source in (("sd", at.models / "sd"), ("ip-adapter", at.models / "ip-adapter"),
                         ("controlnet", ASSETS / "controlnet")):  # fmt: skip
        shutil.copytree(source, folder / name, symlinks=False)
    flags = drawing(at.things, at.models, at.runs / "ubp", folder / "drawn", **guided(at), stage="decode")
    printed("generate_eeg2img", *flags)


def guided(at: Places) -> dict:
    return {"conditioning": ["ip_adapter", "controlnet"], "structure_dir": at.steps / "sgdm", "num_samples": 1,
            "structure_vae": at.steps / "vae", "num_inference_steps": 1, "samples": 1}  # fmt: skip


def read_drawing(folder: Path, at: Places) -> list:
    """The pictures that the second stage draws of what the first one decoded."""
    from tests.test_pictures_of_seen_images import drawing

    models = {"image_model": folder / "sd", "ip_adapter": folder / "ip-adapter", "controlnet": folder / "controlnet"}
    flags = drawing(at.things, at.models, at.runs / "ubp", folder / "drawn", **guided(at), stage="images", **models)
    printed("generate_eeg2img", *flags)
    return opened(sorted((folder / "drawn").rglob("generated_*.png")))


def make_drawn_seen(folder: Path, at: Places) -> None:
    make_drawing(folder, at)
    read_drawing(folder, at)
    for name in ("sd", "ip-adapter", "controlnet"):
        shutil.rmtree(folder / name)
        (folder / name).symlink_to(ASSETS / "controlnet" if name == "controlnet" else at.models / name)


# -------- targets, and the images that they are of


def seen_targets(folder: Path, at: Places, images: Sequence[Path]) -> list:
    """Targets of all kinds that training keeps, of some images."""
    from models import clip_targets
    from models.captioner import Captioner

    sd, names = str(at.models / "sd"), [path.name for path in images]
    captioner = Captioner(str(ASSETS / "captioner"), cpu())
    tokens = clip_targets.vision_token_targets(captioner, names, images, folder)
    return [clip_targets.image_targets(str(CLIP), images, folder), clip_targets.vae_latent_targets(sd, images, folder),
            tokens[names[0]]]  # fmt: skip


def make_seen_targets(folder: Path, at: Places) -> None:
    at.fresh["seen targets"] = seen_targets(folder, at, at.seen_pictures[:2])


def read_seen_targets(folder: Path, at: Places) -> list:
    found = seen_targets(folder, at, at.seen_pictures[:2])
    return [as_fresh(one.float(), fresh.float()) for one, fresh in zip(found, at.fresh["seen targets"], strict=True)]


def make_seen_images(folder: Path, at: Places) -> None:
    from PIL import Image

    shutil.copy(at.seen_pictures[0], folder / "a.png")
    for suffix in ("jpg", "JPEG"):
        Image.open(at.seen_pictures[1]).save(folder / f"b.{suffix}", format="JPEG")


def read_seen_images(folder: Path, at: Places) -> list:
    from models.clip_targets import image_targets

    return [image_targets(str(CLIP), sorted(path for path in folder.iterdir() if path.is_file() and path.stem in "ab"),
                          folder / "out")]  # fmt: skip


def make_captions(folder: Path, at: Places) -> None:
    shutil.copy(at.imagenet / "captions.jsonl", folder)


def read_captions_file(folder: Path, at: Places) -> list:
    """As training reads it, and as the script that goes on with it."""
    from readers.captions import captions_of, known_captions

    return [captions_of(folder / "captions.jsonl"), known_captions(folder / "captions.jsonl")]


# -------- finished runs


def copy_run(folder: Path, at: Places) -> None:
    run = json.loads((at.runs / "ubp/results.json").read_text())
    for name in ("run.json", "results.json", "metrics.jsonl", "decoded_test.jsonl", "README.md", "config.json",
                 "model.safetensors", "last.pth", f"encoder_epoch{run['best_epoch']}.pth"):  # fmt: skip
        (folder / "ubp").mkdir(exist_ok=True)
        shutil.copy(at.runs / "ubp" / name, folder / "ubp" / name)
    accuracy = run["test"]["retrieval"]["accuracy"]
    (folder / "ubp/results.csv").write_text(f"run,readout,accuracy\nubp,retrieval,{accuracy}\n")


def read_audit(folder: Path, at: Places) -> str:
    """What the audit says of a run. It finds breaches in a store as small as this one, and ends with their number."""
    out = io.StringIO()
    try:
        printed("evaluate", folder / "ubp", audit=at.things / "processed_lmdb", cuda=-1, out=out)
    except UserError as error:
        if " breaches in " not in str(error):
            raise
    return out.getvalue().replace(str(folder), "")


def read_table(folder: Path, at: Places) -> list:
    """What the audit says of a table of scores beside a run."""
    return list(audit_run._tables(read_run(folder / "ubp")))


def read_shared(folder: Path, at: Places) -> str:
    """What share.py would send."""
    return printed("share", folder / "ubp", "me/ubp", show=True).replace(str(folder), "")


def read_evaluated(folder: Path, at: Places) -> str:
    printed("evaluate", folder / "ubp", output_dir=folder / "out", report=True)
    return (folder / "out/results.csv").read_text()


def make_drawn_page(folder: Path, at: Places) -> None:
    """A folder of pictures for the page and the metrics."""
    make_drawing(folder, at)
    read_drawing(folder, at)
    for name in ("sd", "ip-adapter", "controlnet"):
        shutil.rmtree(folder / name)


def read_page(folder: Path, at: Places) -> str:
    flags = {"images": True, "clip_model": CLIP, "metric_weights": folder, "report": True, "output_dir": folder / "out"}
    return printed("evaluate", folder / "drawn", **flags).replace(str(folder), "")


def make_weights(folder: Path, at: Places) -> None:
    shutil.copytree(CLIP, folder / "clip")
    shutil.copytree(at.models / "ip-adapter", folder / "ip-adapter")


def read_weights(folder: Path, at: Places) -> list:
    """What doctor.py says of them."""
    from stages import inputs

    found = inputs.check_ip_adapter(str(folder / "ip-adapter"), "models/ip-adapter_sd15.safetensors")
    return [inputs.weights_gb(folder / "clip"), tuple(map(str, found))]


# -------- all of them

# functions that open a file and that no kind reaches, and why
NOT_REACHED = {
    "utils.files.code_digest": "the project's own code",
    "stages.inputs.table": "tables in docs/ alone",
    "doctor.check_packages": "requirements.txt alone",
    "evaluation.report.page": "figures that it has just drawn",
    "utils.limits._ceiling": "/proc/self/statm",
    "stages.sweeps.*": "logs that it has written itself",
    "utils.script.*": "/dev/null",
    "utils.download.*": "what it downloads itself",
    "utils.hub._commit": "needs a network",
    "utils.hub.has_file": "needs a network",
    "models.hub.*": "the library's own call on a folder; models read theirs through utils.checkpoints",
    "models.braindecode_encoders.*": "needs braindecode, an extra",
    "evaluation.image_networks._network": "torchvision's weights have 30 MB and more",
    "evaluation.audit*": "slow: the kind `run, audited` reaches it, on demand",
    "datasets.own_sources._whole_positions": "needs MOABB, an extra",
    "stages.inputs.check_recording": "the digest of a recording for doctor.py --deep",
}
# endings of recordings that nothing here can write; MNE and pyxdf read them, and .txt and .tsv are read as .csv is
NOT_WRITTEN = (".ahdr", ".eeg", ".lay", ".cnt", ".xdf", ".xdfz", ".txt", ".tsv")


cut_npy, cut_pt, cut_rows = make_things_cut("npy"), make_things_cut("pt"), make_things_cut("pt", by_row=True)
read_raw, read_cut = read_things("raw", sessions=[1]), read_things("files")
OWN = {"bdf": make_bdf, "edf": make_edf, "gdf": make_gdf_of_own, "vhdr": make_vhdr, "set": make_set,
       "fif.gz": make_fif_packed, "csv": make_table(False), "csv.gz": make_table(True)}  # fmt: skip
AS_VI, LIKE_VI = ("bdf", "edf", "vhdr", "set"), "slow, and read by MNE as the recordings of Visual Imagery are"
# one checkpoint of each kind of pipelines 4 to 6
RUNS = {run: (copy_checkpoint_of(run), read_checkpoint_of(run)) for run in
        ("ubp", "prior", "caption", "vae", "low", "sgdm")}  # fmt: skip
KINDS = {
    "THINGS raw .npy": Kind(make_things_raw, read_raw, files="raw_eeg_*.npy"),
    "THINGS image_metadata.npy": Kind(cut_npy, read_cut, files="image_metadata.npy"),
    "THINGS cut .npy": Kind(cut_npy, read_cut, files="preprocessed_*"),
    "THINGS cut .pt": Kind(cut_pt, read_cut, True, "*.pt"),
    "THINGS cut .pt, a row a trial": Kind(cut_rows, read_cut, True, "*.pt"),
    "EEG-ImageNet .pth": Kind(make_imagenet, read_imagenet, True, "*.pth"),
    "EEG-ImageNet names": Kind(make_imagenet, read_imagenet, files="names.txt"),
    **{f"own .{ending}": Kind(make, read_own, files=f"{STEM}*", aside=LIKE_VI if ending in AS_VI else "")
       for ending, make in OWN.items()},
    "own BIDS": Kind(make_bids, read_bids, files="*.[jt]s*"),
    "--words FILE": Kind(make_words, read_words_files),
    **{f"checkpoint: {run}": Kind(*both, True, "*.pth") for run, both in RUNS.items()},
    "published checkpoint": Kind(make_published, read_published, True),
    "run in its second form": Kind(make_second_form, lambda folder, at: embedded(folder, at), files="[mc]*"),
    "facts.json of a ControlNet": Kind(make_facts, read_facts),
    "captioner": Kind(copied_asset("captioner"), read_captioner),
    "vision model": Kind(make_vision, read_vision),
    "convolutional classifier": Kind(copied_asset("classifier"), read_convnet),
    "CLIP, for sentences": Kind(copied_asset("clip"), read_sentences, files="*.json"),
    "VAE of an image model": Kind(make_vae, read_vae_of_images, files="*.json"),
    "language model's layers": Kind(make_llm_config, read_llm_layers, files="config.json"),
    "what draws seen images": Kind(make_drawing, read_drawing, files="model_index.json *config.json ip-adapter*"),
    "decoded seen images": Kind(make_drawing, read_drawing, files="drawn/*"),
    "targets of seen images": Kind(make_seen_targets, read_seen_targets, True, "*.safetensors"),
    "seen images": Kind(make_seen_images, read_seen_images),
    "captions.jsonl": Kind(make_captions, read_captions_file),
    "run, audited": Kind(copy_run, read_audit, files="*.json* *.csv *.pth", aside="8 s a file"),
    "run, its table of scores": Kind(copy_run, read_table, files="*.csv"),
    "run, shared": Kind(copy_run, read_shared, files="[!de]*"),
    "run, evaluated": Kind(copy_run, read_evaluated, files="r*.json"),
    "pictures, evaluated": Kind(make_drawn_page, read_page, files="*.[pj]*"),
    "weights, for doctor.py": Kind(make_weights, read_weights, files="*.safetensors"),
    # right files of other content, as a stranger may hand them over
    **{f"checkpoint: {run}, repacked": Kind(*both, False, "*.pth", repack)
       for run, both in RUNS.items()},
    "published checkpoint, repacked": Kind(make_published, read_published, damage=repack),
}  # fmt: skip
PICKLED = ("THINGS raw .npy", "THINGS image_metadata.npy", "THINGS cut .npy", "THINGS cut .pt", "EEG-ImageNet .pth")
for name in PICKLED:
    KINDS[f"{name}, wrong types"] = replace(KINDS[name], checksum=False, damage=repickle)
    KINDS[f"{name}, with code"] = replace(KINDS[name], checksum=False, damage=smuggle, aside="")
LARGE = ("language model", "stable-diffusion", "amused", "CLIP", "captioner", "vision model",
         "convolutional classifier", "CLIP, for sentences", "VAE of an image model", "language model's layers",
         "what draws seen images")  # fmt: skip
KNOWN = kinds.KINDS | KINDS
KINDS |= {f"{name}, huge numbers": replace(KNOWN[name], files="*.json", damage=enlarge) for name in LARGE}
KINDS |= {
    f"checkpoint: {run}, huge numbers": replace(KNOWN[f"checkpoint: {run}"], checksum=False, damage=enlarge)
    for run in RUNS
}
KINDS |= {f"{name}, endless": replace(KNOWN[name], files="*.png", damage=long_picture)
          for name in ("photos", "seen images")}  # fmt: skip
