"""Pretrain CSBrain: hide patches of unlabelled trials, and reconstruct them. Several stores at once, of any montage.

    python pretrain_csbrain.py --datasets_dir data/BCICIV2b/processed_lmdb --output_dir pth/pretrained
    python pretrain_csbrain.py --datasets_dir STORE OTHER_STORE --output_dir pth/pretrained --epochs 30
    accelerate launch --multi_gpu --num_processes 2 pretrain_csbrain.py …        # --cuda -1 behind it: CPU processes
    python finetune_eeg_llm.py … --foundation_dir pth/pretrained/csbrain_epoch30.pth

The published weights have no licence; these are your own. One set of weights reads all montages: CSBrain's regions have
theirs, however many electrodes they hold. The training people of each store's protocol are pretrained on, its
validation people choose the epoch (of people who test nothing is read; the checkpoint notes who was). The loss is the
squared error of the hidden patches. Leaves in --output_dir: csbrain_epochN.pth, metrics.jsonl, run.json, results.json.
"""

import argparse
import math
from functools import partial
from pathlib import Path

from datasets.splits import check_protocol
from utils import flags
from utils.errors import UserError, loading
from utils.script import run_script, start_script


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("--datasets_dir", nargs="+", required=True, help="trial stores in microvolts")
    add("--output_dir", "--model_dir", required=True, help="folder for checkpoints and metrics")
    add("--protocol", type=flags.checked(check_protocol),
        help="whose trials train and validate, in all stores (default: as each store says)")
    add("--foundation_dir", help="weights to go on from: a file, a folder, or OWNER/NAME (default: random ones)")
    add("--mask", type=flags.share, default=0.5, help="share of the patches that are hidden")
    add("--epochs", type=flags.at_least(1), default=20, help="passes over all training trials")
    add("--batch_size", type=flags.at_least(1), default=32,
        help="trials of one store an optimiser step, of each process")
    add("--lr", type=flags.number, default=5e-4, help="highest learning rate, cosine to 0")
    add("--warmup", type=flags.at_least(0), default=100, help="steps before the full learning rate")
    add("--weight_decay", type=flags.number, default=0.05, help="AdamW's")
    add("--clip", type=flags.number, default=1.0, help="largest gradient norm")
    flags.add_resume_flags(parser)
    # fmt: on
    args = parser.parse_args()
    args.defaults = flags.defaults(parser, args)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch
from torch import nn
from torch.nn import functional as F

from datasets.store import description_of_store
from datasets.trials import load_splits
from models.CSBrain import CSBrain
from stages.runs import LAST, Run
from stages.scores import measured
from utils.checkpoints import load_weights, weights_file
from utils.device import end_processes, start_accelerator
from utils.processes import gathered, mean_over, part, share
from utils.progress import progress
from utils.seeds import seed_everything

READOUT = "share explained"
# what blocks add to what they get; and by how much random weights of it are made smaller
ENDS_OF_BRANCHES, SMALL = (".TemEmbedEEGLayer.", ".BrainEmbedEEGLayer.", ".linear2.", ".out_proj."), 0.1


def with_weights_of(model: CSBrain, montage) -> CSBrain:
    """The same weights, the very tensors, as a model that reads another montage."""
    other = CSBrain.build(montage.brain_regions, montage.sorted_indices)
    parts = dict(other.named_modules())
    for name, parameter in model.named_parameters():
        place, _, attribute = name.rpartition(".")
        parts[place]._parameters[attribute] = parameter
    return other


@torch.no_grad()
def start_small(model: CSBrain) -> None:
    """Let random weights begin with nothing for every hidden patch, and blocks that hardly change what they get.

    With the published initialisation what flows through the twelve blocks doubles in each: a reconstruction begins
    thousands of times as large as the signal, and several epochs go into making it small. After Zhang et al., Fixup,
    arXiv 1901.09321.
    """
    for name, parameter in model.named_parameters():
        if any(part in f".{name}" for part in ENDS_OF_BRANCHES):
            parameter.mul_(SMALL)
        elif name.startswith("proj_out."):
            parameter.zero_()


class OneOf(nn.ModuleList):
    """Models that share their weights, as one module: a call names which one is asked."""

    def forward(self, which: int, *inputs: torch.Tensor) -> torch.Tensor:
        return self[which](*inputs)


def hidden_patches(x: torch.Tensor, share: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """(B, C, P) bool for (B, C, P, 200): as many patches of each trial, at least one."""
    n = x.shape[1] * x.shape[2]
    order = torch.rand(len(x), n, generator=generator).argsort(dim=1)
    return (order < max(1, round(share * n))).view(x.shape[:3]).to(x.device)


def reconstruct(model: CSBrain, x: torch.Tensor, hidden: torch.Tensor, call=None) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model makes of the hidden patches (n, 200), and what they were, in units of 100 µV.

    call : callable, optional. In place of the model's own: what DDP made of it.
    """
    made = (call or model)(x, hidden.float())  # (B, C, P, 200), electrodes region by region, as `hidden` counts them
    return made[hidden], x[:, model.sorted_indices][hidden]


@torch.no_grad()
def explained(accelerator, models, splits, hide: float) -> dict:
    """A measure over validation trials: 1 − squared error / power of the hidden patches; the same patches each time."""
    models.eval()
    trials, values = [(store, k) for store, of in enumerate(splits) for k in range(len(of["val"]))], []
    for number in share(accelerator, range(len(trials))):
        store, k = trials[number]
        x = splits[store]["val"][k]["x"][None]
        hidden = hidden_patches(x, hide, torch.Generator().manual_seed(number)).to(accelerator.device)
        made, was = reconstruct(models[store], x.to(accelerator.device), hidden)
        values.append(1 - (made - was).square().sum() / was.square().sum().clamp(min=1e-12))
    values = gathered(accelerator, torch.stack(values))[: len(trials)].tolist() if trials else []
    return {READOUT: measured(READOUT, values)} if values else {}


def batches_of(splits, size: int, seed: int) -> list[tuple[int, torch.Tensor]]:
    """Which store, and which of its training trials: all of them once, batches of one store each, in a random order."""
    order = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(len(of["train"]), generator=order).split(size) for of in splits]
    batches = [(store, batch) for store, of_store in enumerate(rows) for batch in of_store]
    return [batches[k] for k in torch.randperm(len(batches), generator=order)]


def train_epoch(accelerator, model, splits, optimizer, lr_of, epoch: int, args, bar) -> float:
    """One pass over the training trials of all stores. Mean loss."""
    device, models, losses = accelerator.device, accelerator.unwrap_model(model), []
    batches = batches_of(splits, args.batch_size * accelerator.num_processes, args.seed * 100_003 + epoch)
    model.train()
    for number, (store, batch) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr_of((epoch - 1) * len(batches) + number, args.epochs * len(batches))
        chosen, weight = part(accelerator, batch)
        x = torch.stack([splits[store]["train"][k]["x"] for k in chosen.tolist()])  # (B, C, P, 200)
        hidden = hidden_patches(x, args.mask).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            made, was = reconstruct(models[store], x.to(device), hidden, partial(model, store))
        loss = weight * F.mse_loss(made.float(), was)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        losses.append(loss.item())
        bar.update(len(batch))
    return mean_over(accelerator, sum(losses) / len(losses))


def main(args: argparse.Namespace) -> None:
    # a region without electrodes in a montage has no part in its batches
    accelerator, _ = start_accelerator(args.cuda, "fp32", 1, args.seed, idle_parameters=True)

    # ------------------------------------------------------------ trials of all stores
    splits = []
    for place in args.datasets_dir:
        description = description_of_store(place)
        of_store = load_splits(place, description, args.protocol or description.protocol)
        if of_store["train"].units != "microvolts":
            raise UserError(f"{place} holds whitened trials, without a unit; prepare with --whiten none")
        splits.append(of_store)

    # ------------------------------------------------------------ one set of weights, a model a montage
    seed_everything(args.seed)
    montages = [of["train"].montage for of in splits]
    model = CSBrain.build(montages[0].brain_regions, montages[0].sorted_indices)
    known = set()  # whose trials the weights that are gone on from have read
    if args.foundation_dir:
        loaded = load_weights(model, weights_file(args.foundation_dir))
        known = set(loaded.pretrained_on)
        print(f"going on from {args.foundation_dir}: {loaded}")
    else:
        start_small(model)
    model.to(accelerator.device)
    others = (with_weights_of(model, montage).to(accelerator.device) for montage in montages[1:])
    models = OneOf([model, *others])
    all_splits = splits
    splits = [{mode: d.prepared(model.prepare) for mode, d in of.items() if mode != "test"} for of in splits]
    depends_on = {"stores": [of["train"].store.fingerprint for of in splits]}
    turn = accelerator.process_index, accelerator.num_processes
    run = Run(Path(args.output_dir), ["csbrain_epoch{}.pth"], READOUT, args.keep, turn)
    run.open(vars(args), {"output_dir"}, depends_on)
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    parameters = [p for name, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, args.lr, weight_decay=args.weight_decay)
    if run.state:
        with loading(*LAST):
            model.load_state_dict(run.state["model"])
            optimizer.load_state_dict(run.state["optimizer"])
    n = [{mode: len(dataset) for mode, dataset in of.items()} for of in splits]
    people = {f"{of['train'].description.name}/{t.subject}" for of in splits for d in of.values() for t in d.trials}
    print(f"{len(splits)} stores, {sum(of['train'] for of in n)} / {sum(of['val'] for of in n)} train / val trials of "
          f"{len(people)} people; {sum(p.numel() for p in model.parameters()):,} parameters; "
          f"{accelerator.num_processes} process(es) on {accelerator.device}")  # fmt: skip

    # ------------------------------------------------------------ training
    def lr_of(step: int, steps: int) -> float:
        if step < args.warmup:
            return args.lr * (step + 1) / args.warmup
        return args.lr * (1 + math.cos(math.pi * min(1.0, (step - args.warmup) / max(1, steps - args.warmup)))) / 2

    pretrained_on = sorted(people | known)
    run.begin(all_splits[0], args.protocol or description.protocol, pretrained_on=pretrained_on)
    together = accelerator.prepare(models)
    for epoch in run.epochs(args.epochs):
        seed_everything(args.seed, epoch, accelerator.process_index)
        name = f"epoch {epoch}/{args.epochs}"
        with progress(total=sum(of["train"] for of in n), desc=name, unit="trial", disable=not run.writes) as bar:
            loss = train_epoch(accelerator, together, splits, optimizer, lr_of, epoch, args, bar)
        run.trained(loss)
        val = explained(accelerator, models, splits, args.mask)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        facts = {"model": model.state_dict(), "what": "csbrain", "pretrained_on": pretrained_on}
        print(run.save_epoch(loss, val, [facts], state))
        accelerator.wait_for_everyone()
    run.finish([], False, {})  # nothing is tested: what the features are worth, baseline.py --model linear_probe says
    del together
    end_processes(accelerator)


if __name__ == "__main__":
    run_script(lambda: main(args), [Path(args.output_dir) / ".lock"], "finished epochs are kept; go on with --resume")
