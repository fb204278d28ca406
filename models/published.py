"""Checkpoints of the published repositories, under their published names → this project's models.

    model = from_published("atm", state_dict, kind="paper")

Sizes are read off the shapes. What has no effect on the output is ignored by name; any other unknown name is refused.
"""

import math
import re
from collections.abc import Callable, Mapping

import torch
from torch import nn

from models import eeg_encoders as nets
from models.eeg_encoders import FILTERS, KERNEL, POOL, STEP
from models.prior import DiffusionPriorUNet
from models.recipes import ATM_KINDS
from utils.checkpoints import unwrapped
from utils.errors import UserError, reason

# ---------------------------------------------------------------- names: published → ours

TSCONV = {
    r"enc_eeg\.0\.tsconv\.0\.": "tsconv.time.",
    r"enc_eeg\.0\.tsconv\.2\.": "tsconv.norm1.",
    r"enc_eeg\.0\.tsconv\.4\.": "tsconv.space.",
    r"enc_eeg\.0\.tsconv\.5\.": "tsconv.norm2.",
    r"enc_eeg\.0\.projection\.0\.": "tsconv.mix.",
    r"proj_eeg\.0\.": "project.first.",
    r"proj_eeg\.1\.fn\.1\.": "project.second.",
    r"proj_eeg\.2\.": "project.norm.",
}
LAYER = r"encoder\.encoder\.attn_layers\.0\."
ATM = {
    r"encoder\.enc_embedding\.value_embedding\.(?=weight|bias)": "embed.0.",
    r"encoder\.enc_embedding\.value_embedding\.(\d+)\.": r"embed.\1.",
    r"encoder\.enc_embedding\.subject_embedding\.subject_embedding\.": "subjects.",
    r"encoder\.enc_embedding\.subject_embedding\.shared_embedding$": "stranger",
    **{LAYER + rf"attention\.{part}_projection\.": f"{part}." for part in ("query", "key", "value", "out")},
    **{LAYER + rf"conv{k}\.": f"ff{k}." for k in (1, 2)},
    **{LAYER + rf"norm{k}\.": f"norm{k}." for k in (1, 2)},
    r"encoder\.encoder\.norm\.": "norm.",
    **TSCONV,
}
UBP = {
    r"(brain\.)?model\.0\.": "project.first.",
    r"(brain\.)?model\.1\.f\.1\.": "project.second.",
    r"(brain\.)?model\.2\.": "project.norm.",
}
LOW_LEVEL = {r"subject_wise_linear\.0\.": "embed.", r"upsampler\.": "upsampler."}
PRIOR = {r"(?=(input|output|(en|de)code)_)": ""}
SAME = {r"(?=(conv1|depthwise_conv|separable_conv[12]|bn[123]?|fc[123]?|l[123])\.)": ""}
RGNN = {r"conv1\.lin\.": "lin.", r"(?=edge_weight$)": "", **SAME}
# without effect on the output
IDLE = r"(brain\.)?logit_scale|.*num_batches_tracked"
IDLE_ATM = (
    IDLE + r"|subject_wise_linear\..*|encoder\.enc_embedding\.(mask_token|position_embedding\.pe|"
    r"temporal_embedding\.embed\.weight|subject_embedding\.mask_embedding)"
)

# ---------------------------------------------------------------- models, as large as the shapes say


def _atm(shapes: Mapping[str, torch.Size], kind: str) -> nn.Module:
    n_joint = sum(bool(re.fullmatch(r"embed\.\d+\.weight", name)) for name in shapes)
    n_chans, dim = shapes["tsconv.space.weight"][2], shapes["project.first.weight"][0]
    n_subjects, n_times = shapes["subjects.weight"]
    return nets.ATM(n_chans, n_times, dim, n_subjects, n_linear=n_joint, **ATM_KINDS[kind])


def _nice(s: Mapping[str, torch.Size], kind: str) -> nn.Module:
    dim, width = s["project.first.weight"]
    n_times = (width // FILTERS - 1) * STEP + POOL + KERNEL - 1  # the fewest for which TSConv gives so wide a vector
    return nets.NICE(s["tsconv.space.weight"][2], n_times, dim)


def _eegnet(s: Mapping[str, torch.Size], kind: str) -> nn.Module:
    n_classes, width = s["fc1.weight"]
    return nets.ImageNetEEGNet(n_classes, s["depthwise_conv.weight"][2], n_times=(10 * (width // 16) - 1) * 4 - 1)


def _rgnn(s: Mapping[str, torch.Size], kind: str) -> nn.Module:
    n_chans = (math.isqrt(8 * s["edge_weight"][0] + 1) - 1) // 2
    return nets.RGNN(s["fc.weight"][0], n_chans, s["lin.weight"][1])


def _prior(shapes: Mapping[str, torch.Size], kind: str) -> nn.Module:
    n_levels = sum(bool(re.fullmatch(r"encode_layers\.\d+\.0\.weight", name)) for name in shapes)
    levels = [shapes[f"encode_layers.{level}.0.weight"] for level in range(n_levels)]
    dim, condition_dim = shapes["input_layer.0.weight"][1], shapes["encode_cond_embedding.0.weight"][1]
    return DiffusionPriorUNet(dim, condition_dim, (levels[0][1], *(narrow for narrow, _ in levels)))


def _low_level(shapes: Mapping[str, torch.Size], kind: str) -> nn.Module:
    places = [int(name.split(".")[1]) for name in shapes if re.fullmatch(r"upsampler\.\d+\.weight", name)]
    layers = [shapes[f"upsampler.{place}.weight"] for place in sorted(places)]
    edge = 2 ** sum(len(shape) == 4 and shape[-1] == 4 for shape in layers)
    latents = layers[-1][1], edge, edge
    return nets.LowLevel(shapes["upsampler.0.weight"][0] // 128, shapes["embed.weight"][1], latents)


# name → (published names → ours, what is ignored, model of these shapes)
PUBLISHED: dict[str, tuple[dict[str, str], str, Callable[..., nn.Module]]] = {
    "atm": (ATM, IDLE_ATM, _atm),
    "nice": (TSCONV, IDLE, _nice),
    "ubp": (UBP, IDLE, lambda s, _: nets.UBP(1, *reversed(s["project.first.weight"]))),
    "eegnet": (SAME, IDLE, _eegnet),
    "mlp": (SAME, IDLE, lambda s, _: nets.DEClassifier(s["l3.weight"][0], s["l1.weight"][1])),
    "de_mlp": (SAME, IDLE, lambda s, _: nets.DEMapper(s["fc1.weight"][1], (77, s["fc3.weight"][0] // 77))),
    "rgnn": (RGNN, IDLE, _rgnn),
    "low_level": (LOW_LEVEL, IDLE, _low_level),
    "prior": (PRIOR, IDLE, _prior),
}


def own_names(name: str) -> Callable[[str], bool]:
    """Whether a name is one of a published model's; `name`: a key of `PUBLISHED`."""
    names, idle, _ = PUBLISHED[name]
    return lambda given: bool(re.fullmatch(idle, given)) or any(re.match(pattern, given) for pattern in names)


def from_published(name: str, state_dict: Mapping[str, torch.Tensor], kind: str = "develop") -> nn.Module:
    """A model with the weights of a published checkpoint, in evaluation mode.

    name : str. A key of `PUBLISHED`.
    state_dict : mapping of published names to tensors, wherever they lie in it: see `utils.checkpoints.unwrapped`.
    kind : str. For "atm", which published state the file is from: a key of `ATM_KINDS`.
    Called as model(x), "atm" as model(x, subject_ids), "prior" as model(x, t, condition).
    Raises UserError if a name is unknown, a weight is missing, or shapes do not fit together.
    """
    if name not in PUBLISHED:
        raise UserError(f"{name}: no published model here; there are {', '.join(PUBLISHED)}")
    if kind not in ATM_KINDS:
        raise UserError(f"--checkpoint_kind {kind}: expected one of {', '.join(ATM_KINDS)}")
    names, idle, make = PUBLISHED[name]
    renamed, unknown = {}, []
    for published, value in unwrapped(state_dict, own_names(name), f"the published {name}").items():
        if not isinstance(published, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"the published {name}: {str(published)[:80]} is no tensor under a name")
        if re.fullmatch(idle, published):
            continue
        ours = next((re.sub(p, r, published, count=1) for p, r in names.items() if re.match(p, published)), None)
        if ours is None:
            unknown.append(published)
            continue
        if re.fullmatch(r"ff[12]\.weight", ours) and value.ndim == 3 and value.shape[-1] == 1:
            value = value[..., 0]  # a Linear, published as a convolution of kernel 1
        renamed[ours] = value.float()
    if unknown:
        count = f"{len(unknown)} names are unknown"
        raise UserError(f"the published {name} has no {unknown[0]!r} ({count}): is it another model?")
    shapes = {key: value.shape for key, value in renamed.items()}
    try:
        with torch.device("meta"):
            model = make(shapes, kind)
        wanted = {k: v.shape for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    except KeyError as error:
        raise UserError(f"the published {name} lacks a weight ({error.args[0]})") from None
    except (ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"the published {name} has shapes that do not fit together ({reason(error)})") from None
    for key in sorted(set(wanted) | set(shapes)):
        if shapes.get(key) != wanted.get(key):
            given, expected = (tuple(table[key]) if key in table else "none" for table in (shapes, wanted))
            raise UserError(f"the published {name}: {key} is {given}; expected {expected}")
    with torch.device("cpu"):
        model = make(shapes, kind)
    model.load_state_dict(renamed, strict=False)  # num_batches_tracked only counts
    return model.eval()
