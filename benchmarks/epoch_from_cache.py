"""Claim: an epoch from the token cache takes at most 1.2 times the bare passes of the trained parts.

    python benchmarks/epoch_from_cache.py --demo data/demo/BCICIV2a/processed_lmdb --pth pth/demo     # after sh/demo.sh

Times finetune_eeg_llm.py's own `train_epoch` (loader, collation, accelerate, clipping, optimiser, schedule, progress)
against forward and backward passes of the same model on ready tensors of the same shapes, in turns, in the joint phase,
at the demo's sizes.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.bciciv2a_llm_dataset import DESCRIPTION, BCICIV2aLLMDataset  # noqa: E402
from datasets.trials import TextCollator  # noqa: E402
from finetune_eeg_llm import train_epoch  # noqa: E402
from models.eeg_llm import EEGLanguageModel, EEGProjection, add_lora, load_language_model  # noqa: E402
from stages.tokens import TokenCache, encoder_for  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", default="data/demo/BCICIV2a/processed_lmdb", help="the demo's store")
    parser.add_argument("--pth", default="pth/demo", help="the demo's tiny models")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cpu")
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=args.gradient_accumulation_steps)
    dataset = BCICIV2aLLMDataset(args.demo, "train")
    encoder = encoder_for(dataset, "csbrain", f"{args.pth}/CSBrain.pth")
    cache = TokenCache(None, encoder, DESCRIPTION.montage, "hemisphere")
    dataset.tokens = cache.tokens(dataset, device)
    llm, tokenizer = load_language_model(f"{args.pth}/TinyLlama-1.1B-Chat-v1.0", device, True, torch.float32)
    llm = add_lora(llm)
    projection = EEGProjection(llm.get_input_embeddings().weight.shape[1])
    model = EEGLanguageModel(llm, tokenizer, DESCRIPTION.system_prompt, DESCRIPTION.user_prompt, projection)
    trained, _ = model.set_phase(joint=True)
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    collator = TextCollator(DESCRIPTION, tokenizer)
    loader = DataLoader(dataset, args.batch_size, shuffle=True, collate_fn=collator)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer.optimizer)
    settings = SimpleNamespace(
        gradient_accumulation_steps=args.gradient_accumulation_steps, clip=1.0, label_smoothing=0.0
    )
    batches = list(loader)

    ratios = []
    for round_ in range(args.rounds + 1):
        started = time.perf_counter()
        with tqdm(total=len(dataset), desc="epoch") as bar:
            train_epoch(accelerator, model, loader, optimizer, schedule, settings, bar)
        epoch = time.perf_counter() - started
        started = time.perf_counter()
        for batch in batches:
            model(batch["x"], batch["target_ids"], batch["target_mask"]).backward()
        bare = time.perf_counter() - started
        model.zero_grad()
        if round_:  # the first round warms up
            ratios.append(epoch / bare)
    print(f"epoch {epoch:.2f} s, bare passes {bare:.2f} s ({len(dataset)} trials, batches of {args.batch_size})")
    print(
        f"epoch / bare: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f} (claim: ≤ 1.2)"
    )


if __name__ == "__main__":
    main()
