"""CSBrain, the EEG foundation model that gives this project its features.

Source: "CSBrain: A Cross-scale Spatiotemporal Brain Foundation Model for EEG Decoding", NeurIPS 2025,
arXiv 2506.23075. The constructor, the call and the 295 parameter names are the published ones.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from models.CSBrain_transformer import BrainEmbedEEGLayer, CSBrain_TransformerEncoder, TemEmbedEEGLayer
from models.hub import OnHub
from utils.signals import to_patches

CSBRAIN_KERNELS = [(1,), (3,), (5,)]  # patches or electrodes


class PatchEmbedding(nn.Module):
    """(B, C, P, 200) samples → (B, C, P, 200) features: waveform, spectrum and position of each patch."""

    def __init__(self, in_dim: int, d_model: int):
        super().__init__()
        filters = 25
        self.mask_encoding = nn.Parameter(torch.zeros(in_dim), requires_grad=False)
        layers = [nn.Conv2d(1, filters, (1, 49), stride=(1, 25), padding=(0, 24)), nn.GroupNorm(5, filters), nn.GELU()]
        for _ in range(2):
            layers += [nn.Conv2d(filters, filters, (1, 3), padding=(0, 1)), nn.GroupNorm(5, filters), nn.GELU()]
        self.proj_in = nn.Sequential(*layers)
        self.spectral_proj = nn.Sequential(nn.Linear(in_dim // 2 + 1, d_model), nn.Dropout(0.1))
        self.positional_encoding = nn.Sequential(nn.Conv2d(d_model, d_model, (19, 7), padding=(9, 3), groups=d_model))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        b, c, p, t = x.shape
        if mask is not None:
            x = torch.where(mask.bool()[..., None], self.mask_encoding, x)
        h = self.proj_in(x.reshape(b, 1, c * p, t))  # (B, 25, C·P, 8); GroupNorm sees all patches of a trial
        h = h.transpose(1, 2).reshape(b, c, p, -1)  # filter-major
        spectrum = torch.fft.rfft(x, norm="forward").abs()  # (B, C, P, 101)
        h = h + self.spectral_proj(spectrum)
        position = self.positional_encoding(h.permute(0, 3, 1, 2))  # over the (electrode, patch) grid
        return h + position.permute(0, 2, 3, 1)


class CSBrain(nn.Module, OnHub):
    """The encoder.

    in_dim, out_dim, d_model : int. Samples a patch, width of `proj_out`, width inside; published: 200 each.
    dim_feedforward, n_layer, nhead : int. Published: 800, 12, 8.
    seq_len : int. Kept for the published call; nothing depends on it.
    TemEmbed_kernel_sizes : list of 1-tuples. Kernels in patches and electrodes; [(1,), (3,), (5,)].
    brain_regions : sequence of int. Region code of every electrode in input order: 0 frontal, 1 parietal, 2 temporal,
        3 occipital, 4 central.
    sorted_indices : sequence of int. Electrodes region by region (ascending code). The output stays in this order.
    area_config : dict, made here. "region_<code>" to {"channels": n, "slice": slice in the sorted order}.
    Raises ValueError if `sorted_indices` is no permutation of the electrodes or does not go region by region.
    """

    def __init__(
        self,
        in_dim: int = 200,
        out_dim: int = 200,
        d_model: int = 200,
        dim_feedforward: int = 800,
        seq_len: int = 30,
        n_layer: int = 12,
        nhead: int = 8,
        TemEmbed_kernel_sizes: Sequence[tuple[int]] = CSBRAIN_KERNELS,
        brain_regions: Sequence[int] = (),
        sorted_indices: Sequence[int] = (),
        dropout: float = 0.1,
    ):
        super().__init__()
        codes = [int(brain_regions[i]) for i in sorted_indices]
        if sorted(sorted_indices) != list(range(len(brain_regions))) or codes != sorted(codes) or not codes:
            raise ValueError("sorted_indices must list every electrode once, region by region in ascending code")
        self.area_config = {}
        for code in sorted(set(codes)):
            start, n = codes.index(code), codes.count(code)
            self.area_config[f"region_{code}"] = {"channels": n, "slice": slice(start, start + n)}
        self.register_buffer("sorted_indices", torch.as_tensor(list(sorted_indices)), persistent=False)
        self.electrode_order, self.width = [int(k) for k in sorted_indices], d_model

        kernels = list(TemEmbed_kernel_sizes)
        self.patch_embedding = PatchEmbedding(in_dim, d_model)
        self.TemEmbedEEGLayer = TemEmbedEEGLayer(d_model, kernels)
        self.BrainEmbedEEGLayer = BrainEmbedEEGLayer(d_model, kernels, self.area_config)
        self.encoder = CSBrain_TransformerEncoder(n_layer, d_model, nhead, dim_feedforward, self.area_config, dropout)
        self.proj_out = nn.Sequential(nn.Linear(d_model, out_dim))
        self.apply(_init_weights)

    # ------------------------------------------------------------ what an encoder has: models/token_encoders.py

    needs_microvolts = True  # what it was pretrained on
    pretrained, lr = True, 1e-4  # the authors' learning rate when they train it on BCIC-IV-2a
    gives, takes_people = ("tokens",), False

    @classmethod
    def build(cls, brain_regions: Sequence[int], sorted_indices: Sequence[int], **_) -> "CSBrain":
        return cls(brain_regions=brain_regions, sorted_indices=sorted_indices)

    def prepare(self, x: np.ndarray, sfreq: float) -> np.ndarray:
        """(C, n_times) microvolts → (C, P, 200): patches of one second at 200 Hz, units of 100 µV."""
        return to_patches(x, sfreq)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """All but the mask token and the blocks of regions that this montage does not have."""
        blocks = self.BrainEmbedEEGLayer.region_blocks.items()
        unused = {id(p) for name, block in blocks if name not in self.area_config for p in block.parameters()}
        unused.add(id(self.patch_embedding.mask_encoding))
        return [p for p in self.parameters() if id(p) not in unused]

    def parameters_by_depth(self) -> list[list[nn.Parameter]]:
        """From input to output: embeddings, which all blocks share, then each block; the last one with `proj_out`."""
        embeddings = self.patch_embedding, self.TemEmbedEEGLayer, self.BrainEmbedEEGLayer
        depths = [embeddings, *([layer] for layer in self.encoder.layers)]
        depths[-1] = [*depths[-1], self.proj_out]
        return [[p for module in depth for p in module.parameters()] for depth in depths]

    def attention_layers(self) -> list[nn.MultiheadAttention]:
        """What --encoder_lora adapts."""
        return [module for module in self.modules() if isinstance(module, nn.MultiheadAttention)]

    # ------------------------------------------------------------ the published call

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Encode a batch of trials.

        x : (B, C, P, 200) float tensor. Patches of one second at 200 Hz, units of 100 µV, electrodes in input order.
        mask : (B, C, P) tensor, optional. 1 where a patch is replaced by `mask_encoding`; electrodes in **region
            order**, since the published code reorders the signal before it masks.
        Returns (B, C, P, 200) tensor, electrodes in **region order** (`sorted_indices`).
        """
        x = x[:, self.sorted_indices]
        h = self.patch_embedding(x, mask)
        return self.proj_out(self.encoder(h, self.TemEmbedEEGLayer, self.BrainEmbedEEGLayer))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
