"""Claim: an epoch from the token cache takes at most 1.2 times the bare passes of the trained parts.

    python benchmarks/epoch_from_cache.py --demo data/demo/BCICIV2a/processed_lmdb --pth pth/demo     # after sh/demo.sh

Runs finetune_eeg_llm.py and takes the training time of its epochs (loader, collation, accelerate, clipping, optimiser,
schedule, progress) from timing.jsonl; beside it, in this process, forward and backward passes of the same model on
ready tensors of the same shapes, in the joint phase, at the demo's sizes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datasets.bciciv2a_llm_dataset import DESCRIPTION, BCICIV2aLLMDataset  # noqa: E402
from datasets.trials import TextCollator  # noqa: E402
from models.eeg_llm import EEGLanguageModel, EEGProjection, add_lora, load_language_model  # noqa: E402
from stages.tokens import TokenCache, encoder_for  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", default="data/demo/BCICIV2a/processed_lmdb", help="the demo's store")
    parser.add_argument("--pth", default="pth/demo", help="the demo's tiny models")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cpu")
    dataset = BCICIV2aLLMDataset(args.demo, "train")
    encoder = encoder_for(dataset, "csbrain", f"{args.pth}/CSBrain.pth")
    cache = TokenCache(None, encoder, DESCRIPTION.montage, "hemisphere")
    dataset = dataset.with_tokens(cache.tokens(dataset, device))
    llm, tokenizer = load_language_model(f"{args.pth}/TinyLlama-1.1B-Chat-v1.0", device, True, torch.float32)
    llm = add_lora(llm)
    projection = EEGProjection(llm.get_input_embeddings().weight.shape[1])
    model = EEGLanguageModel(llm, tokenizer, DESCRIPTION.system_prompt, DESCRIPTION.user_prompt, projection)
    model.set_phase(joint=True)
    model.train()
    batches = list(DataLoader(dataset, args.batch_size, shuffle=True, collate_fn=TextCollator(DESCRIPTION, tokenizer)))

    passes = []
    for _ in range(args.rounds + 1):
        started = time.perf_counter()
        for batch in batches:
            model(batch["x"], batch["target_ids"], batch["target_mask"]).backward()
        passes.append(time.perf_counter() - started)
        model.zero_grad()
    epochs = script_epochs(args)
    bare, epoch = statistics.median(passes[1:]), statistics.median(epochs[1:])  # the first round warms up
    print(f"{len(dataset)} trials, batches of {args.batch_size}, {args.rounds} rounds each")
    print(
        f"epoch {epoch:.2f} s ({min(epochs[1:]):.2f} to {max(epochs[1:]):.2f}), "
        f"bare passes {bare:.2f} s ({min(passes[1:]):.2f} to {max(passes[1:]):.2f})"
    )
    print(f"epoch / bare: {epoch / bare:.2f} (claim: ≤ 1.2)")


def script_epochs(args) -> list[float]:
    """Seconds that each epoch's training takes in the script, all of it in the joint phase."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, ROOT / "finetune_eeg_llm.py", "--datasets_dir", args.demo, "--model_dir", folder,
            "--foundation_dir", f"{args.pth}/CSBrain.pth", "--llm", f"{args.pth}/TinyLlama-1.1B-Chat-v1.0",
            "--token_pooling", "hemisphere", "--epochs", args.rounds + 1, "--warmup_epochs", 0,
            "--batch_size", args.batch_size, "--max_new_tokens", 1, "--cuda", -1,
        ]  # fmt: skip
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        lines = (Path(folder) / "timing.jsonl").read_text().splitlines()
    return [json.loads(line)["train_seconds"] for line in lines]


if __name__ == "__main__":
    main()
