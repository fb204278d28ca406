"""Features of pictures in published networks, for the metrics of reconstruction tables. None of them is trained here.

AlexNet, Inception v3, EfficientNet-B1 and the ResNet-50 of SwAV come from torchvision (an extra), their weights files
lie in one folder; CLIP comes from a folder in the hub's layout. What is not there is named, and never replaced.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import transformers
from PIL import Image
from torch import nn

from models.eeg_clip_mapper import CLIPImageTargetBuilder
from models.loading import kind_of, load_processor, load_whole
from utils.archives import check_packed
from utils.checkpoints import check_tensors, unwrapped
from utils.errors import UserError, loading

MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision's weights expect
BATCH = 32
INCEPTION = {"transform_input": True, "init_weights": False}


# name → (file of the weights, architecture, its options, layer that is read, edge in pixels)
TORCHVISION = {
    "AlexNet 2": ("alexnet-owt-7be5be79.pth", "alexnet", {}, "features.4", 256),
    "AlexNet 5": ("alexnet-owt-7be5be79.pth", "alexnet", {}, "features.11", 256),
    "Inception": ("inception_v3_google-0cc3c7bd.pth", "inception_v3", INCEPTION, "avgpool", 342),
    "EffNet-B": ("efficientnet_b1-c27df63c.pth", "efficientnet_b1", {}, "avgpool", 255),
    "SwAV": ("swav_800ep_pretrain.pth.tar", "resnet50", {}, "avgpool", 224),
}
DISTANCES = ("EffNet-B", "SwAV")  # which tables print as 1 − correlation of the features; the others identify
# model_type of config.json → class of transformers: convolutional classifiers whose first and last stage are read
CONVNETS = {"resnet": "ResNetForImageClassification", "convnext": "ConvNextForImageClassification"}
CONV_HINT = "give a ResNet or ConvNeXt in the hub's layout, such as microsoft/resnet-50"


def feature_networks(
    weights_dir: Path, clip_model: str, convnet: str | None = None
) -> tuple[dict[str, Callable], list[str]]:
    """Networks that are there, name → (pictures → (N, D) features), and in words those that are not.

    weights_dir : Path. Folder of torchvision's and SwAV's files.
    clip_model : str. A folder laid out like `openai/clip-vit-large-patch14`, or a hub address.
    convnet : str, optional. A convolutional classifier (see `CONVNETS`), folder or hub address; needs no torchvision.
    Raises UserError if `convnet` is named and cannot be loaded.
    """
    networks, missing = {}, []
    for name, (file, architecture, options, layer, edge) in TORCHVISION.items():
        try:
            networks[name] = _reader(_network(weights_dir / file, architecture, options), layer, edge)
        except UserError as error:
            missing.append(f"{name}: {error}")
    if convnet:
        networks |= _stages(convnet)
    try:
        clip = CLIPImageTargetBuilder(clip_model, weights_dir).load()
        networks[f"CLIP ({'/'.join(Path(clip_model).parts[-2:])})"] = _in_batches(clip)
    except UserError as error:
        missing.append(f"CLIP: {error}")
    return networks, missing


def _stages(name: str) -> dict[str, Callable]:
    """What the first and the last stage of a convolutional classifier give, flat; both are had by one pass."""
    kind, safe = kind_of(name, "--convnet", CONV_HINT, CONVNETS)
    model = load_whole(getattr(transformers, CONVNETS[kind]), name, "--convnet", CONV_HINT, **safe, dtype=torch.float32)
    with loading(f"--convnet {name}", CONV_HINT):
        processor = load_processor(transformers.AutoImageProcessor, name, use_fast=False, **safe)

    def features(stage: int, pictures: Sequence[Image.Image]) -> torch.Tensor:
        with loading(f"--convnet {name}", CONV_HINT):
            x = processor([picture.convert("RGB") for picture in pictures], return_tensors="pt")["pixel_values"]
            return model(x, output_hidden_states=True).hidden_states[stage].flatten(1).clone()

    model.eval()
    stages = {f"{Path(name).name}, first stage": 1, f"{Path(name).name}, last stage": -1}
    return {words: _in_batches(partial(features, stage)) for words, stage in stages.items()}


def _network(path: Path, architecture: str, options: dict) -> nn.Module:
    """A network of torchvision with a file's weights; UserError where the library, the file or a weight is missing."""
    if not path.is_file():
        raise UserError(f"{path} is not there; docs/weights.md says where it comes from")
    try:
        import torchvision.models
    except Exception as error:  # a torchvision for another torch fails in many ways
        raise UserError(f"torchvision cannot be imported ({type(error).__name__}); pip install torchvision") from None
    with loading(str(path), "fetch it again"):
        check_packed(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
        check_tensors(weights, path.stat().st_size)
        network = getattr(torchvision.models, architecture)(weights=None, **options)
        weights = unwrapped(weights, network.state_dict().__contains__, str(path))  # SwAV's: saved in parallel
        fit = network.load_state_dict(weights, strict=False)
        if absent := [name for name in fit.missing_keys if not name.startswith("fc.")]:  # SwAV has heads of its own
            raise ValueError(f"it has no {absent[0]} and {len(absent) - 1} more")
    return network.eval()


def _reader(network: nn.Module, layer: str, edge: int) -> Callable:
    """Pictures → what a layer gives, flat."""
    read = {}
    network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: read.update(x=output.flatten(1)))

    def features(pictures: Sequence[Image.Image]) -> torch.Tensor:
        network((pixels(pictures, edge) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(SD)[:, None, None])
        return read["x"].clone()

    return _in_batches(features)


def _in_batches(features: Callable) -> Callable:
    @torch.inference_mode()
    def all_features(pictures: Sequence[Image.Image]) -> torch.Tensor:
        starts = range(0, len(pictures), BATCH)
        return torch.cat([features(list(pictures[start : start + BATCH])) for start in starts])

    return all_features


def pixels(pictures: Sequence[Image.Image], edge: int) -> torch.Tensor:
    """(N, 3, edge, edge) from 0 to 1, resized bilinearly with antialiasing, as torchvision does."""
    resized = [picture.convert("RGB").resize((edge, edge), Image.Resampling.BILINEAR) for picture in pictures]
    bytes_ = torch.stack([torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8) for p in resized])
    return bytes_.view(-1, edge, edge, 3).permute(0, 3, 1, 2).float() / 255
