"""LoRA on an encoder: low-rank adapters beside the frozen weights of its attention (Hu et al., arXiv 2106.09685).

PEFT's adapters of `nn.MultiheadAttention` add to the frozen weights and subtract again in every pass. Rounding then
changes these, and a resumed run is another one. Here a weight is computed from both, and stays as it is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

SCALE = 2.0  # α / rank: 16 / 8, as the language model's LoRA by default


class LowRank(nn.Module):
    """A weight (out, in) → the weight plus SCALE · B A. B (out, rank) is zero at first, A (rank, in) is random."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator):
        super().__init__()
        n_out, n_in = weight.shape
        self.a = nn.Parameter(torch.randn(rank, n_in, generator=generator) / n_in**0.5)
        self.b = nn.Parameter(torch.zeros(n_out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + SCALE * self.b @ self.a


def add_adapters(attention: Sequence[nn.MultiheadAttention], rank: int, seed: int) -> None:
    """Give layers of attention adapters: one for query, key and value together, one for the output."""
    generator = torch.Generator().manual_seed(seed)
    for layer in attention:
        for module, name in ((layer, "in_proj_weight"), (layer.out_proj, "weight")):
            parametrize.register_parametrization(module, name, LowRank(getattr(module, name), rank, generator))


def adapter_parameters(encoder: nn.Module) -> list[nn.Parameter]:
    """Those of all adapters; none of an encoder without."""
    return [p for module in encoder.modules() if isinstance(module, LowRank) for p in module.parameters()]


def merged_state(encoder: nn.Module) -> dict[str, Tensor]:
    """The state dict of a plain encoder that computes what this one does with its adapters, if it has any."""
    state = encoder.state_dict()
    for path, weight in encoder.named_modules():
        if isinstance(weight, parametrize.ParametrizationList):
            state = {name: value for name, value in state.items() if not name.startswith(f"{path}.")}
            state[path.replace("parametrizations.", "")] = weight().detach()
    return state


def remove_adapters(encoder: nn.Module) -> None:
    """Make an encoder plain again; its weights are the merged ones."""
    for module in list(encoder.modules()):
        for name in list(module.parametrizations) if parametrize.is_parametrized(module) else ():
            parametrize.remove_parametrizations(module, name)
