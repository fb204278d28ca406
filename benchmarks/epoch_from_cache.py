"""Goal: an epoch of text or mapper training from cached tokens takes at most 1.1 times the bare passes.

    python benchmarks/epoch_from_cache.py --data data/demo --pth pth/demo     # after sh/demo.sh

Runs finetune_eeg_llm.py and finetune_eeg_to_image.py on the demo and takes the training time of their epochs (loader,
collation, accelerate, clipping, optimiser, schedule, progress) from timing.jsonl; beside it, in this process, forward
and backward passes of the same model on ready tensors of the same shapes, in the joint phase.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from datasets.bciciv2a_llm_dataset import BCICIV2aLLMDataset
from datasets.trials import TextCollator
from datasets.visual_imagery_llm_dataset import VisualImageryLLMDataset
from models.eeg_clip_mapper import EEGMapperModel, MapperBatch, QFormerMapper, mapper_loss
from models.eeg_llm import ClassHead, EEGLanguageModel, EEGProjection, add_lora, load_language_model
from stages.tokens import TokenCache, encoder_for

WEIGHTS = {"cls": 5.0, "contrastive": 2.0, "cos": 1.0, "mse": 0.1}  # of the mapper's terms; any but zero
CPU = torch.device("cpu")


def cached(dataset, pth: Path, pooling: str):
    """The training trials as tokens."""
    cache = TokenCache(None, encoder_for(dataset, "csbrain", str(pth / "CSBrain.pth")), dataset.montage, pooling)
    return dataset.with_tokens(cache.tokens(dataset, CPU))


def text(data: Path, pth: Path, folder: Path, epochs: int) -> tuple:
    """Trials, the bare epoch as a function, and the script's command."""
    store, batch_size = data / "BCICIV2a/processed_lmdb", 4
    dataset = cached(BCICIV2aLLMDataset(store, "train"), pth, "hemisphere")
    description, (_, n_tokens, width) = dataset.description, dataset.tokens.shape
    llm, tokenizer = load_language_model(f"{pth}/TinyLlama-1.1B-Chat-v1.0", CPU, False, torch.float32)
    llm = add_lora(llm)
    projection = EEGProjection(llm.get_input_embeddings().weight.shape[1])
    head = ClassHead(n_tokens, width, len(description.classes), True)
    prompts = description.system_prompt, description.user_prompt
    model = EEGLanguageModel(llm, tokenizer, *prompts, projection, head=head)
    model.set_phase(joint=True)
    model.train()
    batches = list(DataLoader(dataset, batch_size, shuffle=True, collate_fn=TextCollator(description, tokenizer)))

    def bare() -> None:
        for batch in batches:
            targets = batch["target_ids"], batch["target_mask"], 0.0, batch["label"]
            model(batch["x"], *targets, (1.0, 1.0)).backward()
        model.zero_grad()

    command = [
        common.ROOT / "finetune_eeg_llm.py", "--datasets_dir", store, "--model_dir", folder, "--no_quantize",
        "--foundation_dir", pth / "CSBrain.pth", "--llm", pth / "TinyLlama-1.1B-Chat-v1.0", "--token_pooling",
        "hemisphere", "--epochs", epochs, "--warmup_epochs", 0, "--batch_size", batch_size, "--max_new_tokens", 1,
        "--cuda", -1,
    ]  # fmt: skip
    return len(dataset), bare, command


def mapper(data: Path, pth: Path, folder: Path, epochs: int) -> tuple:
    """The same of the Q-Former."""
    store, batch_size = data / "VisualImagery/processed_lmdb", 16
    dataset = cached(VisualImageryLLMDataset(store, "train"), pth, "region")
    n_classes, n_tokens = len(dataset.description.classes), dataset.tokens.shape[1]
    model = EEGMapperModel(QFormerMapper(n_classes=n_classes, n_tokens=n_tokens)).train()
    targets = torch.randn(n_classes, 768), torch.randn(n_classes, 77, 768)
    batches = list(DataLoader(dataset, batch_size, shuffle=True))

    def bare() -> None:
        for batch in batches:
            mapper_loss(MapperBatch(*model(batch["x"]), batch["label"], *targets), WEIGHTS)[0].backward()
        model.zero_grad()

    command = [
        common.ROOT / "finetune_eeg_to_image.py", "--datasets_dir", store, "--output_dir", folder, "--foundation_dir",
        pth / "CSBrain.pth", "--clip_model", pth / "clip", "--image_model", pth / "stable-diffusion", "--stimuli_dir",
        data / "VisualImagery/stimuli", "--epochs", epochs, "--warmup_epochs", 0, "--batch_size", batch_size,
        "--cuda", -1,
    ]  # fmt: skip
    return len(dataset), bare, command


WORK = {"text": text, "mapper": mapper}


def main() -> None:
    parser = common.new_parser(__doc__)
    parser.add_argument("--data", type=Path, default=common.ROOT / "data/demo", help="the demo's stores")
    parser.add_argument("--pth", type=Path, default=common.ROOT / "pth/demo", help="the demo's tiny models")
    parser.add_argument("--only", nargs="+", choices=list(WORK), default=list(WORK))
    args = parser.parse_args()
    print(common.machine())
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            n, bare, command = WORK[name](args.data, args.pth, Path(folder) / "run", args.rounds + 1)
            ours, (bare,) = common.around(command, Path(folder) / "run", {"bare": bare}, args.rounds)
        print(f"{name}, {n} trials: epoch {common.spread(ours)} s, bare passes {common.spread(bare)} s")
        print(f"  epoch / bare {common.ratio(ours, bare)} (goal: ≤ 1.1)")


if __name__ == "__main__":
    main()
