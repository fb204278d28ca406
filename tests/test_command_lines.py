"""Command lines that people have: those of README.md, and those that stood there and in sh/ before each script was one
system.
"""

import os
import re
import runpy
import shlex
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

BEFORE = """
doctor.py
prepare_data.py
finetune_eeg_llm.py --downstream_dataset BCICIV2a --datasets_dir data/BCICIV2a/processed_lmdb --model_dir
    pth_downtasks/eeg_llm_bcic_new --use_pretrained_weights --foundation_dir pth/CSBrain.pth --epochs 20
    --warmup_epochs 5 --batch_size 4 --gradient_accumulation_steps 8 --lr 2e-4 --cuda 0
generate.py --foundation_dir pth/CSBrain.pth --projection_dir pth_downtasks/eeg_llm_bcic_new --datasets_dir
    data/BCICIV2a/processed_lmdb --downstream_dataset BCICIV2a --num_samples 20 --generate_images --image_model
    stabilityai/stable-diffusion-2-1 --output_dir outputs/eeg2image
prepare_data_vi.py
finetune_eeg_llm.py --downstream_dataset VI --datasets_dir data/VisualImagery/processed_lmdb --model_dir
    pth_downtasks/eeg_llm_vi --use_pretrained_weights --foundation_dir pth/CSBrain.pth --epochs 10
    --warmup_epochs 3 --batch_size 4 --gradient_accumulation_steps 8 --lr 2e-4 --cuda 0
generate_vi.py --datasets_dir data/VisualImagery/processed_lmdb --projection_path pth_downtasks/eeg_llm_vi
    --stimuli_dir data/VisualImagery/stimuli --num_samples 20 --output_dir outputs/vi_images
finetune_eeg_to_image.py --datasets_dir data/VisualImagery/processed_lmdb --stimuli_dir
    data/VisualImagery/stimuli --foundation_dir pth/CSBrain.pth --output_dir pth_downtasks/eeg_direct --epochs
    20 --warmup_epochs 5 --batch_size 16 --lr 5e-4 --lambda_cls 5.0 --lambda_contrastive 2.0 --lambda_cos 1.0
    --lambda_mse 0.1 --temperature 0.5 --cuda 0
generate_vi_eeg2img.py --datasets_dir data/VisualImagery/processed_lmdb --mapper_path pth_downtasks/eeg_direct
    --stimuli_dir data/VisualImagery/stimuli --num_samples 20 --output_dir outputs/vi_eeg2img
    --num_inference_steps 25 --guidance_scale 7.5
prepare_data_things.py --subjects 8
finetune_eeg_to_clip.py --encoder atm --setting within --subject sub-08 --output_dir
    pth_downtasks/things/atm_sub-08
retrieve.py pth_downtasks/things/atm_sub-08 --output_dir outputs/things/atm_sub-08
train_prior.py --model_dir pth_downtasks/things/atm_sub-08 --output_dir pth_downtasks/things/prior_sub-08
generate_eeg2img.py --conditioning ip_adapter --model_dir pth_downtasks/things/atm_sub-08 --prior_dir
    pth_downtasks/things/prior_sub-08 --compare ceiling nearest --output_dir outputs/things/sub-08
prepare_data_imagenet.py --pth_path EEG-ImageNet_1.pth EEG-ImageNet_2.pth
caption_images.py
finetune_eeg_to_clip.py --downstream_dataset EEGImageNet --datasets_dir data/EEGImageNet/processed_lmdb
    --images_dir data/EEGImageNet/images --target text_states --captions data/EEGImageNet/captions.jsonl
    --encoder de_mlp --subject S00 --passes 25 --epochs 40 --output_dir pth_downtasks/imagenet/S00
generate_eeg2img.py --conditioning text_states --model_dir pth_downtasks/imagenet/S00 --datasets_dir
    data/EEGImageNet/processed_lmdb --images_dir data/EEGImageNet/images --captions
    data/EEGImageNet/captions.jsonl --output_dir outputs/imagenet/S00
baseline.py --model linear_probe --downstream_dataset VI --datasets_dir data/VisualImagery/processed_lmdb
    --output_dir pth_downtasks/vi_probe
evaluate.py --audit data/VisualImagery/processed_lmdb pth_downtasks/eeg_llm_vi
draw_true_class.py outputs/vi_eeg2img
evaluate.py pth_downtasks/* outputs/vi_eeg2img --images --report --output_dir outputs/tables
finetune_eeg_to_clip.py --setting cross --subject sub-08 --encoder nice --channels posterior --batch_size 16
finetune_eeg_to_clip.py --setting joint --encoder low_level --target vae_latent --image_model stabilityai/sdxl-turbo
train_structure.py --what vae --setting within --subject sub-08 --output_dir pth_downtasks/sgdm/vae_sub-08 --resume
generate_eeg2img.py --conditioning controlnet ip_adapter --structure_vae vae --controlnet net --compare ceiling
    nearest --low_level_dir low --caption_dir caption --samples 4
generate_eeg2img.py --conditioning text_states --model_dir run --samples 1 --clip_model clip --draw_batch 4
baseline.py --model svm --downstream_dataset EEGImageNet --granularity coarse --protocol day:S03 --output_dir svm
finetune_eeg_llm.py --downstream_dataset BCICIV2b --datasets_dir store --protocol people:B06+B07/B05 --model_dir run
"""


def commands(text):
    """Arguments of each command line; one that goes on is indented."""
    return [shlex.split(line, comments=True) for line in re.sub(r"\n +", " ", text).strip().splitlines()]


def of_readme():
    blocks = "".join(re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)).replace("\\\n", " ")
    for name, value in re.findall(r"(?m)^(\w+)=(\S+)", blocks):
        blocks = blocks.replace(f"${name}", value)
    return [shlex.split(line, comments=True)[1:] for line in blocks.splitlines() if line.startswith("python ")]


def parsed(argv, monkeypatch):
    """The arguments with which a command line's script would begin."""
    caught = []

    def run_script(main, *_):
        (cell,) = [cell for cell in main.__closure__ or () if hasattr(cell.cell_contents, "cuda")] or [None]
        caught.append(cell and cell.cell_contents or main.__globals__["args"])
        raise SystemExit(0)

    monkeypatch.setattr("utils.script.run_script", run_script)
    monkeypatch.setattr(sys, "argv", argv)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / argv[0]), run_name="__main__")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert stop.value.code == 0
    return caught[0]


@pytest.mark.parametrize("argv", commands(BEFORE), ids=" ".join)
def test_a_command_line_of_before_is_still_understood(argv, monkeypatch):
    args = parsed(list(argv), monkeypatch)
    if "--setting" in argv and "--subject" in argv:
        assert args.protocol == f"{argv[argv.index('--setting') + 1]}:{argv[argv.index('--subject') + 1]}"
    if "text_states" in argv and "--captions" in argv and argv[0] == "generate_eeg2img.py":
        assert (args.captions, args.scheduler, args.num_inference_steps) == (
            "data/EEGImageNet/captions.jsonl",
            "pndm",
            50,
        )


def test_text_states_without_a_folder_go_where_they_went(monkeypatch):
    args = parsed(["generate_eeg2img.py", "--conditioning", "text_states", "--stimuli_dir", "photos"], monkeypatch)
    assert args.output_dir.endswith("outputs/eeg2img") and args.images_dir == "photos"
    assert args.datasets_dir.endswith("data/THINGS/processed_lmdb")
    short = ["--conditioning", "text_states", "--output", "mine", "--datasets", "store", "--images", "photos"]
    args = parsed(["generate_eeg2img.py", *short], monkeypatch)
    assert (args.output_dir, args.datasets_dir, args.images_dir) == ("mine", "store", "photos")


@pytest.mark.parametrize("argv", of_readme(), ids=" ".join)
def test_a_command_line_of_the_readme_is_understood(argv, monkeypatch):
    parsed(argv, monkeypatch)


def test_the_readme_has_command_lines_of_all_pipelines():
    scripts = {argv[0] for argv in of_readme()}
    assert len(scripts) >= 15 and {"generate.py", "generate_text_states.py", "retrieve.py"} <= scripts


def test_two_spellings_of_a_protocol_are_one(monkeypatch):
    store = ["--datasets_dir", "store", "--model_dir", "run", "--downstream_dataset", "BCICIV2a"]
    one = parsed(["finetune_eeg_llm.py", *store, "--protocol", "loso:A03"], monkeypatch)
    other = parsed(["finetune_eeg_llm.py", *store, "--setting", "loso", "--subject", "A03"], monkeypatch)
    assert one == other and one.protocol == "loso:A03"


def test_on_windows_every_script_says_what_is_needed(tmp_path):
    """What a Python there lacks is taken away before anything is imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, sys\n"
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'): sys.modules[name] = None\n"
        "for name in ('SIGALRM', 'setitimer', 'SIGKILL', 'SIGHUP'): delattr(signal, name)\n"
    )
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    how["env"] = os.environ | {"PYTHONPATH": str(tmp_path)}
    scripts = sorted(path.name for path in ROOT.glob("*.py"))
    started = {name: subprocess.Popen([sys.executable, ROOT / name, "-h"], **how) for name in scripts}
    said = {name: (*process.communicate(), process.returncode) for name, process in started.items()}
    assert "doctor.py" in said
    assert set(said.values()) == {("", "error: Linux or macOS is needed (on Windows: WSL 2)\n", 2)}, said
