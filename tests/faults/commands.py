"""The commands of all pipelines, small: what each starts from, what it writes, what it must not do twice."""

import atexit
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import datasets.prepare
from models.captioner import Captioner
from models.eeg_llm import EEGLanguageModel
from models.guided_generator import GuidedGenerator
from models.image_generator import EEGImageGenerator
from stages.tokens import TokenCache
from tests.conftest import flat, small_store
from tests.faults.places import Places
from tests.faults.seen_kinds import ASSETS, CLIP, make_bids, make_imagenet, make_things_cut, make_things_raw
from tests.seen_images import training
from tests.test_pictures_of_seen_images import drawing, low_flags, on, prior_flags
from tests.test_seen_images import on_imagenet

FEW = [f"A0{k}{session}.mat" for k in range(1, 5) for session in "TE"]  # recordings to prepare
# scripts that no command here runs, and why
NOT_KILLED = {
    "doctor.py": "it writes nothing",
    "sweep.py": "it writes logs; the runs that it starts are killed here, and tests/test_sweep.py kills one of its own",
    "prepare_demo.py": "it makes what all tests start from; tests/test_prepare_demo.py runs it twice",
    "train_demo_images.py": "it makes the models that the project ships; a user who trains one begins again",
}
# killed on demand only: other commands of the same scripts are killed with every change
SLOW = ("text and encoder training", "towards text", "towards vision", "towards vae_latent", "towards structure",
        "towards text_states", "caption adapter", "ControlNet")  # fmt: skip


@dataclass
class Stage:
    """A script's command, what it writes and what it must not do twice.

    command : callable. (work folder, whether it goes on) → script and arguments.
    start : callable. Fills an empty work folder.
    counted : (object, name of its function). What is counted, once a call.
    at_once : int. How many of them one kill may cost.
    done : callable. Work folder → epochs that were trained.
    warms : bool. Whether its first run fills caches elsewhere, so that its second one says what it does.
    slow : bool. Whether it is killed on demand only.
    inside : callable. What the process of the script begins with.
    kept : callable. What else its result is, such as what a hub has: {name: bytes}.
    """

    command: Callable[[Path, bool], list]
    start: Callable[[Path], None] = lambda work: None
    counted: tuple[object, str] | None = None
    at_once: int = 1
    done: Callable[[Path], int] = lambda work: 0
    warms: bool = False
    slow: bool = False
    inside: Callable[[], None] = lambda: None
    kept: Callable[[], dict[str, bytes]] = dict


def epochs(work: Path) -> int:
    """Epochs that a training has noted the time of."""
    path = work / "run/timing.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def trains(script: str, flags: Callable[[Path], list], **more) -> Stage:
    """A training script, which goes on with --resume."""
    return Stage(lambda work, on: [script, *flags(work), *(["--resume"] if on else [])], done=epochs, **more)


def once_beside(make: Callable[[Path, Places], None], at: Places) -> Callable[[Path], None]:
    """Makes what a command reads, once, beside the work folder."""

    def start(work: Path) -> None:
        if not (work.parent / "given").exists():
            (work.parent / "given").mkdir()
            make(work.parent / "given", at)

    return start


def stages(at: Places, result: Callable[[str], Path]) -> dict[str, Stage]:
    """All of them. result : callable. Name → the work folder of a command that ran undisturbed."""
    every = pipelines_1_to_3(at, result) | pipelines_4_to_6(at, result) | beside_them(at, result)
    for name in SLOW:
        every[name].slow = True
    return every


def pipelines_1_to_3(at: Places, result: Callable[[str], Path]) -> dict[str, Stage]:
    """Preparation, training, decoding, drawing."""
    csbrain, image_model = at.pth / "CSBrain.pth", at.pth / "stable-diffusion"
    llm = at.pth / "TinyLlama-1.1B-Chat-v1.0"
    generate = ["generate.py", "--foundation_dir", csbrain, "--projection_dir", at.trained, "--image_model",
                image_model, "--cuda", -1]  # fmt: skip

    def few_files(folder: Path, at: Places) -> None:
        for name in FEW:
            (folder / name).symlink_to(at.raw / name)

    def text(work: Path, **more) -> list:
        return flat({
            "downstream_dataset": "BCICIV2a", "datasets_dir": at.few, "model_dir": work / "run",
            "foundation_dir": csbrain, "llm": llm, "epochs": 2, "warmup_epochs": 1, "batch_size": 8,
            "gradient_accumulation_steps": 1, "max_new_tokens": 4, "no_quantize": True, "cuda": -1,
        } | more)  # fmt: skip

    def drawn(script: str, **flags) -> Stage:
        def command(work: Path, on: bool) -> list:
            return [script, *flat({
                "datasets_dir": at.vi_few, "stimuli_dir": at.stimuli, "foundation_dir": csbrain, "num_samples": 3,
                "num_inference_steps": 1, "image_size": 64, "cuda": -1, "output_dir": work / "out",
                "cache_dir": work / "cache",
            } | flags)]  # fmt: skip

        return Stage(command, counted=(EEGImageGenerator, "draw"))

    return {
        "preparation": Stage(
            lambda work, on: ["prepare_data.py", "--skip_download", "--raw_dir", work.parent / "given", "--lmdb_dir",
                              work / "store"],
            once_beside(few_files, at), (datasets.prepare, "prepare_file"), at_once=4,
        ),
        "preparation of Visual Imagery": Stage(
            lambda work, on: ["prepare_data_vi.py", "--skip_download", "--raw_dir", at.vi_raw, "--subjects", 1, 2,
                              "--stimuli_dir", at.stimuli, "--lmdb_dir", work / "store", "--workers", 1],
            counted=(datasets.prepare, "prepare_file"),
        ),
        "encoding": Stage(
            lambda work, on: [*generate, "--datasets_dir", work / "processed_lmdb", "--split", "train",
                              "--num_samples", 1, "--stage", "decode", "--max_new_tokens", 1, "--output_dir",
                              work / "out"],
            lambda work: shutil.copytree(at.few, work / "processed_lmdb"), (TokenCache, "_prepared"),
        ),
        "text training": trains("finetune_eeg_llm.py", text, warms=True),
        "text and encoder training": trains("finetune_eeg_llm.py", lambda work: text(work, encoder="eegnet",
            warmup_epochs=0, foundation_dir=None)),
        "mapper training": trains("finetune_eeg_to_image.py", lambda work: flat({
            "datasets_dir": at.vi_few, "stimuli_dir": at.stimuli, "output_dir": work / "run",
            "foundation_dir": csbrain, "clip_model": at.pth / "clip", "image_model": image_model, "mapper": "mlp",
            "epochs": 2, "warmup_epochs": 1, "cuda": -1}), warms=True),
        "decoding": Stage(
            lambda work, on: [*generate, "--datasets_dir", at.few, "--stage", "decode", "--num_samples", 12,
                              "--batch_size", 2, "--max_new_tokens", 8, "--output_dir", work / "out"],
            counted=(EEGLanguageModel, "read"), warms=True,
        ),
        "drawing": Stage(
            lambda work, on: [*generate, "--datasets_dir", at.few, "--stage", "images", "--image_size", 64,
                              "--num_inference_steps", 2, "--output_dir", work / "out"],
            lambda work: shutil.copytree(result("decoding") / "out", work / "out"),
            (EEGImageGenerator, "draw"),
        ),
        "class pictures": drawn("generate_vi.py", projection_path=at.vi_trained, image_model=at.pth / "amused"),
        "mapped pictures": drawn("generate_vi_eeg2img.py", mapper_path=at.mapped, image_model=image_model),
        "true classes": Stage(
            lambda work, on: ["draw_true_class.py", work / "out", "--cuda", -1],
            lambda work: shutil.copytree(result("drawing") / "out", work / "out"),
            (EEGImageGenerator, "draw"),
        ),
    }  # fmt: skip


def pipelines_4_to_6(at: Places, result: Callable[[str], Path]) -> dict[str, Stage]:
    """Preparation, training towards every target, the steps behind it, retrieval, pictures."""
    clip_training = "finetune_eeg_to_clip.py"
    tests = at.things / "images/test_images"

    def prepares(script: str, make: Callable, flags: Callable[[Path], list]) -> Stage:
        def command(work: Path, on: bool) -> list:
            return [script, *flags(work.parent / "given"), "--lmdb_dir", work / "store", "--workers", 1]

        return Stage(command, once_beside(make, at), (datasets.prepare, "prepare_file"))

    def things(place: str) -> Callable:
        return lambda given: ["--skip_download", "--raw_dir", given / place, "--images_dir", given / "none",
                              "--subjects", 1]  # fmt: skip

    def towards(target: str, on_things: bool = True, **more) -> Stage:
        def flags(work: Path) -> list:
            how = {"target": target, "epochs": 2, "cache_dir": work / "cache"} | more
            return training(at.things, work / "run", **how) if on_things else on_imagenet(
                at.imagenet, work / "run", **how)  # fmt: skip

        return trains(clip_training, flags)

    def seen(work: Path, **more) -> list:
        return on(at.things, **{"cache_dir": work / "cache"} | more)

    def guided(work: Path, on: bool) -> list:
        flags = {"conditioning": ["ip_adapter", "controlnet"], "structure_dir": at.steps / "sgdm", "num_samples": 2,
                 "structure_vae": at.steps / "vae", "prior_dir": at.steps / "prior", "low_level_dir": at.steps / "low",
                 "caption_dir": at.steps / "caption", "compare": ["ceiling"], "samples": 2, "prior_steps": 2,
                 "num_inference_steps": 2, "cache_dir": work / "cache"}  # fmt: skip
        return ["generate_eeg2img.py", *drawing(at.things, at.models, at.runs / "ubp", work / "out", **flags)]

    of_one = {"setting": "within", "subject": "sub-01", "tmax": 0.2}
    states = {"encoder": "mlp", "captions": at.imagenet / "captions.jsonl", "image_model": at.models / "sd"}
    return {
        "preparation of THINGS, raw": prepares("prepare_data_things.py", make_things_raw,
            lambda given: [*things("raw")(given), "--sessions", 1]),
        "preparation of THINGS, npy": prepares("prepare_data_things.py", make_things_cut("npy"), things("files")),
        "preparation of THINGS, pt": prepares("prepare_data_things.py", make_things_cut("pt"), things("files")),
        "preparation of EEG-ImageNet": prepares("prepare_data_imagenet.py", make_imagenet,
            lambda given: ["--pth_path", given / "one.pth", "--images_dir", given / "none"]),
        "preparation of one's own": prepares("prepare_data_own.py", make_bids,
            lambda given: [f"bids:{given}", "--window", 0, 1]),
        "towards image": towards("image"),
        "towards vision": towards("vision", clip_model=CLIP, clip_layer=[1, -1]),
        "towards text": towards("text", encoder="nice"),
        "towards vae_latent": trains(clip_training, lambda work: low_flags(at.things, at.models, work / "run",
            cache_dir=work / "cache", **of_one)),
        "towards structure": towards("structure", encoder="sgdm", structure_vae=at.steps / "vae", **of_one),
        "towards classes": towards("classes", False),
        "towards text_states": towards("text_states", False, passes=1, **states),
        "prior": trains("train_prior.py", lambda work: prior_flags(at.things, at.runs / "ubp", work / "run", epochs=2,
            validate_every=1, prior_steps=2, samples=2, cache_dir=work / "cache")),
        "caption adapter": trains("train_prior.py", lambda work: seen(work, what="caption", model_dir=at.runs / "ubp",
            output_dir=work / "run", epochs=2, captioner=ASSETS / "captioner")),
        "structural VAE": trains("train_structure.py", lambda work: seen(work, what="vae", widths=[4, 8, 16],
            hidden=32, epochs=2, output_dir=work / "run")),
        "ControlNet": trains("train_structure.py", lambda work: seen(work, what="controlnet", epochs=1, batch_size=16,
            image_model=at.models / "sd", output_dir=work / "run")),
        "guided pictures": Stage(guided, counted=(GuidedGenerator, "_drawn")),
        "text-state pictures": Stage(
            lambda work, on: ["generate_text_states.py", *flat({
                "datasets_dir": at.imagenet / "processed_lmdb", "model_dir": result("towards text_states") / "run",
                "captions": states["captions"], "images_dir": at.imagenet / "images",
                "image_model": states["image_model"], "num_samples": 2, "num_inference_steps": 1, "image_size": 64,
                "cuda": -1, "cache_dir": work / "cache", "output_dir": work / "out"})],
            counted=(EEGImageGenerator, "draw")),
        "retrieval": Stage(lambda work, on: ["retrieve.py", at.runs / "ubp", *seen(work, output_dir=work / "out")]),
        "captions": Stage(
            lambda work, on: ["caption_images.py", *flat({
                "images_dir": tests, "output": work / "captions.jsonl", "model": ASSETS / "captioner", "cuda": -1,
                "max_tokens": 5, "beams": 2, "batch_size": 1})],
            counted=(Captioner, "__call__")),
    }  # fmt: skip


def beside_them(at: Places, result: Callable[[str], Path]) -> dict[str, Stage]:
    """What serves all pipelines: pretraining, baselines, tables, attribution, the hub."""
    from datasets.description import load_description

    def pretraining_store(folder: Path, at: Places) -> None:
        small_store(folder / "store", load_description("BCICIV2b"), ["B01", "B02", "B06", "B08"], trials=2)

    def two_seeds(work: Path) -> None:
        for seed in (0, 1):
            shutil.copytree(at.trained, work / f"seed{seed}")
            record = work / f"seed{seed}/run.json"
            record.write_text(record.read_text().replace('"seed": 0', f'"seed": {seed}'))

    pretraining = trains("pretrain_csbrain.py", lambda work: flat({
        "datasets_dir": [work.parent / "given/store"], "output_dir": work / "run", "epochs": 1, "batch_size": 4,
        "warmup": 1, "cuda": -1}))  # fmt: skip
    pretraining.start = once_beside(pretraining_store, at)
    return {
        "pretraining": pretraining,
        "baseline": Stage(
            lambda work, on: ["baseline.py", *flat({
                "model": "eegnet", "datasets_dir": at.few, "downstream_dataset": "BCICIV2a", "epochs": 2, "cuda": -1,
                "output_dir": work / "run"})]),
        "attribution": Stage(
            lambda work, on: ["attribute.py", result("text and encoder training") / "run", *flat({
                "datasets_dir": at.few, "output_dir": work / "out", "num_samples": 2, "steps": 2, "cuda": -1})]),
        "tables, ensemble and page": Stage(
            lambda work, on: ["evaluate.py", "--ensemble", work / "mean", work / "seed0", work / "seed1", "--report",
                              "--output_dir", work / "tables"],
            two_seeds),
        "sharing": sharing(at),
    }  # fmt: skip


def sharing(at: Places) -> Stage:
    """Sends a run to a hub in this process; the forks that send ask it over HTTP."""
    from tests.hub_server import LocalHub, serving

    hub, open_to_the_end = LocalHub(), ExitStack()
    atexit.register(open_to_the_end.close)  # later the thread that serves does not run any more

    @cache
    def address() -> str:
        return open_to_the_end.enter_context(serving(hub))

    def ask_it() -> None:
        from huggingface_hub import constants

        constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = address(), False, True
        constants.HUGGINGFACE_CO_URL_TEMPLATE = address() + "/{repo_id}/resolve/{revision}/{filename}"
        os.environ |= {"HF_HUB_OFFLINE": "0", "HF_TOKEN": hub.token}

    def sent() -> dict[str, bytes]:
        return {f"{repo}/{path}": content for repo in hub.repos for path, content in hub.repos[repo]["main"].items()}

    def begin(work: Path) -> None:
        address()
        hub.repos.clear()

    return Stage(lambda work, on: ["share.py", at.runs / "ubp", "me/ubp"], begin, inside=ask_it, kept=sent)
