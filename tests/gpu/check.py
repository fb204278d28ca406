"""Lines of the hardware table, measured one after the other in one process: `bash tests/gpu/run.sh`.

Every line is a function below with its name, limit and unit in LINES. It gets `Sizes` (published, or tiny for the CPU)
and returns how many trials or pictures it did in how many seconds, warmed up before.
"""

import argparse
import contextlib
import io
import json
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, LlamaConfig, LlamaForCausalLM

from benchmarks.memory_of_pictures import PROMPTS, SD15, SDXL, TEXT_G, TEXT_L, TINYLLAMA, VAE, build
from datasets.description import load_description
from demo.tiny_models import byte_tokenizer
from models.CSBrain import CSBrain
from models.eeg_clip_mapper import EEGCLIPMapper, MapperBatch, mapper_loss
from models.eeg_llm import EEGLanguageModel, EEGProjection, add_lora, load_language_model
from models.tiny_llm import write_language_model
from utils.device import free_gpu_memory

GIB, LEFT = 2**30, 256  # MiB that a line may leave on the GPU
SENTENCES = ["The person imagined a dog.", "The person imagined a bird."]
MONTAGE = load_description("VI").montage
EULER = dict(beta_schedule="scaled_linear", timestep_spacing="trailing")


@dataclass
class Sizes:
    """Published sizes on a GPU; `tiny`: the same lines on the CPU in a second each."""

    folder: Path
    device: torch.device
    tiny: bool = False
    made: dict = field(default_factory=dict)

    def batch(self, n: int) -> int:
        return min(n, 2) if self.tiny else n

    @property
    def repetitions(self) -> int:
        return 1 if self.tiny else 5

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder of model files that several lines read, made when the first one asks."""
        if name not in self.made:
            self.made[name] = self.folder / name
            make(self.made[name])
            free_gpu_memory(self.device)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()  # the making is no part of the line
        return self.made[name]

    def timed(self, work: Callable, n: int) -> tuple[int, float]:
        """Trials or pictures, and seconds, of several repetitions behind one that warms up."""
        work()
        self.wait()
        started = time.perf_counter()
        for _ in range(self.repetitions):
            work()
        self.wait()
        return n * self.repetitions, time.perf_counter() - started

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


# ---------------------------------------------------------------- models with random weights


def language_model(sizes: Sizes) -> Path:
    def make(folder: Path) -> None:
        with torch.enable_grad():  # for its tokenizer
            write_language_model(folder, [(*PROMPTS, ["dog"], SENTENCES)], steps=1)
        smaller = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
        settings = TINYLLAMA | (smaller if sizes.tiny else {})
        with torch.device(sizes.device):
            build(LlamaForCausalLM, torch.float16, LlamaConfig(**settings)).save_pretrained(folder)

    return sizes.once("llm", make)


def text_model(sizes: Sizes, quantize: bool, encoder: nn.Module | None = None, reducer=None) -> EEGLanguageModel:
    if quantize:
        import bitsandbytes  # noqa: F401 - where it is not there, the line was not run and has not failed
    dtype = torch.float16 if quantize else torch.bfloat16
    dtype = torch.float32 if sizes.device.type == "cpu" else dtype
    llm, tokenizer = load_language_model(str(language_model(sizes)), sizes.device, quantize, dtype)
    projection = EEGProjection(llm.config.hidden_size)
    return EEGLanguageModel(add_lora(llm), tokenizer, *PROMPTS, projection, encoder, reducer).to(sizes.device)


def write_adapter(unet: nn.Module, path: Path, width: int = 768, seed: int = 0) -> None:
    """An IP-Adapter of random weights, strong enough to see, under the published names."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator)

    cross = unet.config.cross_attention_dim
    state = {"image_proj.proj.weight": noise(4 * cross, width, scale=width**-0.5),
             "image_proj.proj.bias": torch.zeros(4 * cross), "image_proj.norm.weight": torch.ones(cross),
             "image_proj.norm.bias": torch.zeros(cross)}  # fmt: skip
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for k, name in enumerate(names):
        size = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for side in "kv":
            state[f"ip_adapter.{2 * k + 1}.to_{side}_ip.weight"] = noise(size, cross, scale=cross**-0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)


def image_model(sizes: Sizes, xl: bool) -> Path:
    """model/, ip/ and, of Stable Diffusion 1.5, controlnet/."""
    import diffusers

    tokenizer = byte_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    unet_settings, vae_settings, text_l, text_g = SDXL if xl else SD15, VAE, TEXT_L | ids, TEXT_G | ids
    if sizes.tiny:
        narrow = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        text_l, text_g = text_l | narrow, text_g | narrow | {"projection_dim": 32}
        vae_settings = VAE | dict(block_out_channels=(32, 32, 32, 32), layers_per_block=1, sample_size=64)
        unet_settings = unet_settings | dict(sample_size=8, layers_per_block=1, attention_head_dim=8)
        unet_settings |= dict(block_out_channels=(32, 32, 32), transformer_layers_per_block=1, cross_attention_dim=64,
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=80) if xl else dict(
            block_out_channels=(32, 32, 32, 32), cross_attention_dim=32)  # fmt: skip

    def make(folder: Path) -> None:
        def half(kind: type, *args, **settings) -> nn.Module:
            with torch.device(sizes.device):
                return build(kind, torch.float16, *args, **settings)

        unet = half(diffusers.UNet2DConditionModel, **unet_settings)
        parts = {"unet": unet, "tokenizer": tokenizer, "text_encoder": half(CLIPTextModel, CLIPTextConfig(**text_l))}
        if xl:
            vae = half(diffusers.AutoencoderKL, **vae_settings, scaling_factor=0.13025, force_upcast=True)
            parts |= {"text_encoder_2": half(CLIPTextModelWithProjection, CLIPTextConfig(**text_g))}
            parts |= {"tokenizer_2": tokenizer, "scheduler": diffusers.EulerAncestralDiscreteScheduler(**EULER)}
            diffusers.StableDiffusionXLPipeline(vae=vae, **parts).save_pretrained(folder / "model")
        else:
            parts |= {"vae": half(diffusers.AutoencoderKL, **vae_settings), "safety_checker": None}
            parts |= {"scheduler": diffusers.DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1)}
            diffusers.StableDiffusionPipeline(
                **parts, feature_extractor=None, requires_safety_checker=False
            ).save_pretrained(folder / "model")
            net = half(diffusers.ControlNetModel.from_unet, unet, load_weights_from_unet=False)
            net.save_pretrained(folder / "controlnet")
        inside = "sdxl_models/ip-adapter_sdxl_vit-h.safetensors" if xl else "models/ip-adapter_sd15.safetensors"
        write_adapter(unet, folder / "ip" / inside, width=1024)

    return sizes.once("sdxl" if xl else "sd15", make)


# ---------------------------------------------------------------- lines


def train_text(sizes: Sizes, quantize: bool) -> tuple[int, float]:
    """Steps of the joint phase: batch 4, hemisphere tokens, long targets."""
    model, cuda = text_model(sizes, quantize), sizes.device.type == "cuda"
    trained, *_ = model.set_phase(joint=True)
    dtype = torch.float16 if quantize else torch.bfloat16
    optimizer, scaler = torch.optim.AdamW(trained, lr=1e-4), torch.amp.GradScaler(enabled=cuda and quantize)

    def step() -> None:
        tokens, ids = torch.randn(4, 28, 200), torch.randint(3, 500, (4, 64))
        tokens, ids = tokens.to(sizes.device), ids.to(sizes.device)
        with torch.autocast(sizes.device.type, dtype, enabled=cuda):
            loss = model(tokens, ids, torch.ones_like(ids, dtype=torch.bool))
        backward(loss, optimizer, scaler)

    return sizes.timed(step, 4)


def backward(loss: torch.Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    assert torch.isfinite(loss)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def train_mapper(sizes: Sizes) -> tuple[int, float]:
    cuda = sizes.device.type == "cuda"
    mapper = EEGCLIPMapper().to(sizes.device)
    optimizer, scaler = torch.optim.AdamW(mapper.parameters(), lr=1e-4), torch.amp.GradScaler(enabled=cuda)
    targets = torch.randn(10, 768, device=sizes.device), torch.randn(10, 77, 768, device=sizes.device)
    weights, n = {"cls": 5.0, "contrastive": 2.0, "cos": 1.0, "mse": 0.1}, sizes.batch(16)

    def step() -> None:
        with torch.autocast(sizes.device.type, torch.float16, enabled=cuda):
            outputs = mapper(torch.randn(n, 20, 200, device=sizes.device))
        label = torch.randint(10, (n,), device=sizes.device)
        batch = MapperBatch(*(output.float() for output in outputs), label, *targets)
        backward(mapper_loss(batch, weights)[0], optimizer, scaler)

    return sizes.timed(step, n)


def csbrain(sizes: Sizes) -> CSBrain:
    net = CSBrain(n_layer=1 if sizes.tiny else 12, brain_regions=MONTAGE.brain_regions,
                  sorted_indices=MONTAGE.sorted_indices)  # fmt: skip
    return net.to(sizes.device).eval()


@torch.no_grad()
def decode(sizes: Sizes) -> tuple[int, float]:
    """All EEG models of both ways at once, a batch of 16."""
    from models import POOLINGS, choose
    from models.poolings import EEGTokenReducer

    encoder, cuda, n = csbrain(sizes), sizes.device.type == "cuda", sizes.batch(16)
    names = ([of[k] for k in encoder.electrode_order] for of in (MONTAGE.electrodes, MONTAGE.region_names))
    reducer = EEGTokenReducer(choose(POOLINGS, "region")(*names), len(MONTAGE.electrodes))
    model, mapper = text_model(sizes, cuda, encoder, reducer).eval(), EEGCLIPMapper().to(sizes.device).eval()

    def work() -> None:
        with torch.autocast(sizes.device.type, torch.float16, enabled=cuda):
            x = torch.randn(n, 32, 4, 200, device=sizes.device)
            model.read_prefix()
            model.decode(x, SENTENCES, max_new_tokens=2 if sizes.tiny else 32)
            mapper(model.encode(x))

    return sizes.timed(work, n)


@torch.no_grad()
def encode(sizes: Sizes, compiled: bool = False, dtype: torch.dtype = torch.float32) -> tuple[int, float]:
    encoder, x = csbrain(sizes), torch.randn(sizes.batch(64), 32, 4, 200, device=sizes.device)
    encoder = torch.compile(encoder, backend="eager" if sizes.tiny else "inductor") if compiled else encoder

    def work() -> None:
        with torch.autocast(sizes.device.type, dtype, enabled=dtype != torch.float32):
            encoder(x)

    return sizes.timed(work, len(x))


def train_atm(sizes: Sizes) -> tuple[int, float]:
    """Batches of 1,024 towards CLIP embeddings."""
    from datasets.things_dataset import ELECTRODES
    from models.contrastive import info_nce
    from models.eeg_embedding import EEGEmbedding

    model = EEGEmbedding("atm", 1024, list(ELECTRODES), 250, 250.0, "no unit").to(sizes.device).train()
    n, optimizer = sizes.batch(1024), torch.optim.AdamW(model.parameters(), lr=3e-4)
    x, target = torch.randn(n, 63, 250, device=sizes.device), torch.randn(n, 1024, device=sizes.device)
    people = torch.full((n,), -1, device=sizes.device)

    def step() -> None:
        info_nce(model(x, people), target, model.scale()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return sizes.timed(step, n)


def train_part(sizes: Sizes, low_level: bool) -> tuple[int, float]:
    """ATM's low level, or SGDM's VAE."""
    from models.eeg_encoders import LowLevel
    from models.structure import StructuralVAE, vae_loss

    n = sizes.batch(30 if low_level else 32)
    latents = (4, 8, 8) if sizes.tiny else (4, 64, 64)
    narrow = {"widths": (8, 8, 8), "hidden": 16} if sizes.tiny else {}
    model = (LowLevel(latents=latents) if low_level else StructuralVAE(**narrow)).to(sizes.device)
    optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=1e-4), torch.amp.GradScaler(enabled=False)
    x, y = torch.randn(n, 63, 250, device=sizes.device), torch.randn(n, *latents, device=sizes.device)
    pictures, maps = (torch.rand(n, k, 128, 128, device=sizes.device) for k in (3, 1))

    def step() -> None:
        loss = F.l1_loss(model(x), y) if low_level else vae_loss(pictures, maps, model(pictures))[0]
        backward(loss, optimizer, scaler)

    return sizes.timed(step, n)


def train_controlnet(sizes: Sizes) -> tuple[int, float]:
    """As train_structure.py does it: float32, AdamW, activations computed twice; towards noise of 512 × 512."""
    import diffusers

    folder, n, edge = image_model(sizes, False), sizes.batch(4), 8 if sizes.tiny else 64
    kinds = {"model/unet": diffusers.UNet2DConditionModel, "controlnet": diffusers.ControlNetModel}
    unet, net = (kind.from_pretrained(folder / place).to(sizes.device).float() for place, kind in kinds.items())
    unet.requires_grad_(False)
    net.train().enable_gradient_checkpointing()
    optimizer, scaler = torch.optim.AdamW(net.parameters(), lr=1e-5), torch.amp.GradScaler(enabled=False)
    noisy, noise = torch.randn(2, n, 4, edge, edge, device=sizes.device)
    states = torch.randn(n, 77, unet.config.cross_attention_dim, device=sizes.device)
    maps, t = torch.rand(n, 3, 8 * edge, 8 * edge, device=sizes.device), torch.randint(1000, (n,), device=sizes.device)

    def step() -> None:
        down, middle = net(noisy, t, states, maps, return_dict=False)
        more = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        backward(F.mse_loss(unet(noisy, t, states, **more).sample, noise), optimizer, scaler)

    return sizes.timed(step, n)


def draw(sizes: Sizes) -> tuple[int, float]:
    """Stable Diffusion 1.5 from a prompt, the default number of steps."""
    from models.image_generator import EEGImageGenerator

    generator = EEGImageGenerator(
        str(image_model(sizes, False) / "model"), sizes.device, steps=2 if sizes.tiny else None
    )
    return sizes.timed(lambda: generator.generate("a photo of a dog", 0), 1)


def draw_guided(sizes: Sizes, xl: bool) -> tuple[int, float]:
    """From an embedding; Stable Diffusion 1.5 with a ControlNet and latents as well."""
    from models.guided_generator import Guidance, GuidedGenerator
    from models.image_generator import read_prompts

    folder = image_model(sizes, xl)
    told, empty = read_prompts(str(folder / "model"), [""], sizes.device)
    free_gpu_memory(sizes.device)
    more, kinds = {}, {}
    if not xl:
        more = {"controlnet": str(folder / "controlnet"), "strength": 0.85}
        edge = 8 if sizes.tiny else 64
        kinds = {"latents": torch.randn(4, edge, edge), "structure": Image.new("RGB", (128, 128))}
    steps = 2 if sizes.tiny else (4 if xl else 50)
    generator = GuidedGenerator(
        str(folder / "model"), sizes.device, empty, steps=steps, ip_adapter=str(folder / "ip"), width=1024, **more
    )
    return sizes.timed(lambda: generator.draw([Guidance(told[""], torch.randn(1024), **kinds)], [0]), 1)


def run_script(name: str, *flags) -> None:
    """A script's command line inside this process, where its libraries are loaded."""
    before, said = sys.argv, io.StringIO()
    sys.argv = [name, *map(str, flags)]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, said.getvalue()[-300:].strip().replace("\n", " ")
    finally:
        sys.argv = before


def twice(sizes: Sizes) -> tuple[int, float]:
    """The same training command twice: whether weights and rows are the same bytes."""
    from benchmarks.common import things_store

    store, features = things_store(sizes.folder / "things", 200 if sizes.tiny else 2000, 100, 64)
    started, left = time.perf_counter(), []
    for name in ("once", "again"):
        run = sizes.folder / name
        run_script(
            "finetune_eeg_to_clip.py", "--datasets_dir", store, "--protocol", "within:sub-01", "--encoder", "nice",
            "--clip_features", features, "--images_dir", store, "--epochs", 1 if sizes.tiny else 3, "--output_dir", run,
            "--cache_dir", sizes.folder, "--cuda", 0 if sizes.device.type == "cuda" else -1,
        )  # fmt: skip
        left.append([(run / file).read_bytes() for file in ("model.safetensors", "decoded_test.jsonl")])
    same = [a == b for a, b in zip(*left, strict=True)]
    assert same[1], "the decoded rows differ"
    assert same[0], "the rows are the same bytes, the weights are not"
    return 2, time.perf_counter() - started


# name → what is measured, in words; the function; its limit in GiB; unit of the rate
LINES: dict[str, tuple[str, Callable, float | None, str]] = {
    "nf4": ("EEG → text training, NF4 + LoRA, batch 4", lambda s: train_text(s, True), 8, "trials"),
    "bf16": ("the same, weights in bf16", lambda s: train_text(s, False), None, "trials"),
    "mapper": ("mapper training, batch 16", train_mapper, 6, "trials"),
    "decode": ("EEG models, inference, batch 16, texts and scores", decode, 2, "trials"),
    "csbrain": ("CSBrain, fp32, batch 64", encode, 2, "trials"),
    "csbrain_bf16": ("CSBrain, bf16", lambda s: encode(s, dtype=torch.bfloat16), 2, "trials"),
    "compile": ("CSBrain, fp32, torch.compile", lambda s: encode(s, True), 2, "trials"),
    "atm": ("ATM training, batch 1,024", train_atm, 8, "trials"),
    "low_level": ("low level training, batch 30", lambda s: train_part(s, True), 8, "trials"),
    "vae": ("SGDM's VAE training, batch 32", lambda s: train_part(s, False), 8, "pictures"),
    "controlnet": ("ControlNet training, AdamW, batch 4", train_controlnet, 16, "pictures"),
    "sd15": ("Stable Diffusion 1.5, fp16, 512 × 512", draw, 4, "pictures"),
    "guided": ("the same, IP-Adapter, ControlNet, latents", lambda s: draw_guided(s, False), 4, "pictures"),
    "sdxl": ("SDXL-Turbo and IP-Adapter, 4 steps", lambda s: draw_guided(s, True), 8, "pictures"),
    "twice": ("the same command twice: the same bytes", twice, None, "runs"),
}


def measure(name: str, sizes: Sizes) -> dict:
    """A line: peak in GiB, rate, and what is wrong, in words; empty where nothing is."""
    what, work, limit, unit = LINES[name]
    cuda, line = sizes.device.type == "cuda", {"name": name, "what": what, "limit": limit, "peak": None, "rate": None}
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    started, wrong = time.perf_counter(), ""
    try:
        n, seconds = work(sizes)
        line["rate"] = n / seconds
    except ImportError as error:
        wrong = f"not run: {error}"
    except Exception as error:  # one line must not end the others
        wrong = f"FAILED: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    if cuda:
        line["peak"] = torch.cuda.max_memory_allocated() / GIB
    left = free_gpu_memory(sizes.device)
    if limit and line["peak"] and line["peak"] > limit:
        wrong = wrong or f"FAILED: over its limit of {limit} GiB"
    if left > LEFT:
        wrong = wrong or f"FAILED: {left:.0f} MiB are still held"
    return line | {"unit": unit, "seconds": time.perf_counter() - started, "wrong": wrong}


def table(lines: list[dict], head: str) -> str:
    rows = [head, "", "| line | peak, GiB | limit | a second | took, s | |", "| --- | --- | --- | --- | --- | --- |"]
    for line in lines:
        peak = "" if line["peak"] is None else f"{line['peak']:.2f}"
        rate = "" if line["rate"] is None else f"{line['rate']:.3g} {line['unit']}"
        limit = f"{line['limit']:g}" if line["limit"] else ""
        rows.append(f"| {line['what']} | {peak} | {limit} | {rate} | {line['seconds']:.0f} | {line['wrong']} |")
    peaks = [line["peak"] for line in lines if line["name"] in ("decode", "sd15") and line["peak"]]
    if peaks:
        rows.append(f"| end to end: decoding, then a picture | {max(peaks):.2f} | 8 | | | |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--only", nargs="+", choices=list(LINES), default=list(LINES), help="these lines")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs/gpu", help="for check.md and check.json")
    args = parser.parse_args()
    if not args.small and not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no GPU; --small tries every line on the CPU, with tiny models")
    device = torch.device("cpu" if args.small else "cuda")
    name = "CPU, tiny models: this says nothing of a GPU" if args.small else torch.cuda.get_device_name()
    torch.manual_seed(0)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = Sizes(Path(folder), device, args.small)
        for line in args.only:
            lines.append(measure(line, sizes))
            print(
                f"{lines[-1]['what']}: {lines[-1]['wrong'] or 'done'} ({lines[-1]['seconds']:.1f} s)", file=sys.stderr
            )
    text = table(lines, f"{name}, PyTorch {torch.__version__}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "check.md").write_text(text)
    (args.output_dir / "check.json").write_text(json.dumps(lines, indent=1) + "\n")
    print(text)
    sys.exit(any(line["wrong"].startswith("FAILED") for line in lines))


if __name__ == "__main__":
    main()
