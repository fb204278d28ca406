"""Goal: CSBrain's forward pass takes 1 / 1.5 of the time of a direct transcription at batch 1 and 8, 1 / 1.3 at 32.

    python benchmarks/csbrain_forward.py                       # BCIC-IV-2a: 22 electrodes, 4 seconds; fp32
    python benchmarks/csbrain_forward.py --compile --bf16      # and what torch.compile and bf16 are worth

The rival is arXiv 2506.23075 written down step by step, with loops over electrodes and regions, on the same weights;
both must agree. Beside the ratio stands the share of the machine's own rate of matrix products (square fp32 matrices,
the same threads) at which the forward pass does the operations of the transcription.
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from datasets.description import load_description
from models.CSBrain import CSBrain

GOALS = {1: 1.5, 8: 1.5, 32: 1.3}  # batch → ratio
SQUARE = 2048  # edge of the matrices that tell the machine's rate

# ---------------------------------------------------------------- the rival: the paper, line by line


def transcribed(model: CSBrain, x: torch.Tensor) -> torch.Tensor:
    """(B, C, P, 200) → (B, C, P, 200) in region order, evaluation mode."""
    x = x[:, model.sorted_indices]
    b, c, p, t = x.shape
    embedding = model.patch_embedding
    h = embedding.proj_in(x.reshape(b, 1, c * p, t)).permute(0, 2, 1, 3).reshape(b, c, p, t)
    h = h + embedding.spectral_proj(torch.abs(torch.fft.rfft(x, dim=-1, norm="forward")))
    h = h + embedding.positional_encoding(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    areas = {name: list(range(area["slice"].start, area["slice"].stop)) for name, area in model.area_config.items()}
    regions, blocks = list(areas.values()), model.BrainEmbedEEGLayer.region_blocks
    for layer in model.encoder.layers:
        h = h + along_patches(model.TemEmbedEEGLayer.convs, h)
        h = h + along_regions([(blocks[name], areas[name]) for name in areas if name in blocks], h)
        h = h + across_windows(layer.inter_window_attn, layer.norm1(h))
        h = h + across_regions(layer, regions, layer.norm2(h))
        h = h + layer.linear2(F.gelu(layer.linear1(layer.norm3(h))))
    return model.proj_out(h)


def along_patches(convs: nn.ModuleList, h: torch.Tensor) -> torch.Tensor:
    """Electrode by electrode; memory is reinterpreted and not transposed, as published."""
    b, c, p, d = h.shape
    out = []
    for electrode in range(c):
        block = h[:, electrode].reshape(b, d, p, 1)
        out.append(torch.cat([conv(block) for conv in convs], dim=1).reshape(b, p, d))
    return torch.stack(out, dim=1)


def along_regions(blocks: list[tuple], h: torch.Tensor) -> torch.Tensor:
    """Region by region, circular; zeros around a region of one electrode; nothing for codes without weights."""
    b, _, p, d = h.shape
    out = torch.zeros_like(h)
    for convs, electrodes in blocks:
        x = h[:, electrodes].permute(0, 2, 3, 1).reshape(b * p, d, len(electrodes))
        scales = []
        for conv in convs:
            reach = conv.kernel_size[0] // 2
            places = [k % len(electrodes) for k in range(-reach, len(electrodes) + reach)]
            around = x[..., places] if len(electrodes) > 1 else F.pad(x, (reach, reach))
            scales.append(F.conv1d(around, conv.weight[..., 0], conv.bias))
        out[:, electrodes] = torch.cat(scales, dim=1).reshape(b, p, d, len(electrodes)).permute(0, 3, 1, 2)
    return out


def across_windows(attention: nn.MultiheadAttention, h: torch.Tensor) -> torch.Tensor:
    """Electrode by electrode: attention of each slot over the windows of at most five patches."""
    b, c, p, d = h.shape
    w = min(p, 5)
    h = F.pad(h, (0, 0, 0, -p % w))
    out = torch.empty_like(h)
    for electrode in range(c):
        slots = h[:, electrode].reshape(b, -1, w, d).transpose(1, 2).reshape(b * w, -1, d)
        slots = attention(slots, slots, slots, need_weights=False)[0]
        out[:, electrode] = slots.reshape(b, w, -1, d).transpose(1, 2).reshape(b, -1, d)
    return out[:, :, :p]


def across_regions(layer: nn.Module, regions: list[list[int]], h: torch.Tensor) -> torch.Tensor:
    """To every electrode its region's mean through a linear layer; then masked attention over electrodes, by patch."""
    b, c, p, d = h.shape
    with_mean = torch.empty_like(h)
    allowed = torch.zeros(c, c, dtype=torch.bool)
    for electrodes in regions:
        for electrode in electrodes:
            with_mean[:, electrode] = h[:, electrode] + layer.global_fc(h[:, electrodes].mean(dim=1))
    for group in range(max(map(len, regions))):
        members = [electrodes[group % len(electrodes)] for electrodes in regions]
        for i in members:
            for j in members:
                allowed[i, j] = True
    x = with_mean.transpose(1, 2).reshape(b * p, c, d)
    x = layer.inter_region_attn(x, x, x, attn_mask=~allowed, need_weights=False)[0]
    return x.reshape(b, p, c, d).transpose(1, 2)


# ---------------------------------------------------------------- both sides


def matrix_rate(seconds: float = 0.5) -> float:
    """GFLOP/s of square fp32 matrix products on this machine, the best of several."""
    a, best, until = torch.randn(SQUARE, SQUARE), 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until or not best:
        started = time.perf_counter()
        a @ a
        best = max(best, 2 * SQUARE**3 / (time.perf_counter() - started) / 1e9)
    return best


@torch.no_grad()
def main() -> None:
    parser = common.new_parser(__doc__, rounds=9)
    parser.add_argument("--dataset", default="BCICIV2a", help="whose electrodes")
    parser.add_argument("--patches", type=int, default=4, help="seconds of a trial")
    parser.add_argument("--batches", type=int, nargs="+", default=list(GOALS), help="batch sizes")
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument("--bf16", action="store_true", help="also autocast to bf16")
    args = parser.parse_args()
    montage = load_description(args.dataset).montage
    torch.manual_seed(0)
    model = CSBrain(brain_regions=montage.brain_regions, sorted_indices=montage.sorted_indices).eval()
    print(common.machine())
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:  # else attention is one operation, not counted
        transcribed(model, torch.randn(1, len(montage.electrodes), args.patches, 200))
    gflop = counter.get_total_flops() / 1e9
    compiled = torch.compile(model) if args.compile else None
    for batch in args.batches:
        x = torch.randn(batch, len(montage.electrodes), args.patches, 200)
        wanted, got = transcribed(model, x), model(x)
        assert (wanted - got).abs().max() < 1e-4 * wanted.square().mean().sqrt(), "the two do not agree"
        sides = {"ours": lambda x=x: model(x), "transcribed": lambda x=x: transcribed(model, x)}
        if compiled is not None:  # a compiled module has a length, of which it knows nothing
            sides["torch.compile"] = lambda x=x: compiled(x)
        if args.bf16:
            sides["bf16"] = lambda x=x: _bf16(model, x)
        rates = [matrix_rate()]
        seconds = common.in_turns(sides, args.rounds)
        rates.append(matrix_rate())
        goal = f" (goal: ≥ {GOALS[batch]})" if batch in GOALS else ""
        print(f"batch {batch:2}: transcribed / ours {common.ratio(seconds['transcribed'], seconds['ours'])}{goal}")
        trial = [1000 * s / batch for s in seconds["ours"]]
        share = [100 * gflop / (s / batch) / max(rates) for s in seconds["ours"]]
        print(
            f"          ours {common.spread(trial)} ms a trial: {common.spread(share, 0)} % of {max(rates):.0f} GFLOP/s"
        )
        for name in list(sides)[2:]:
            print(f"          ours / {name} {common.ratio(seconds['ours'], seconds[name])}")
    print(f"a trial as transcribed: {gflop:.2f} GFLOP in matrix products and convolutions")


def _bf16(model: CSBrain, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(x)


if __name__ == "__main__":
    main()
