"""Models from folders of strangers: none of their code runs, no weight is missing, and a failure is one line."""

import contextlib
import importlib
import inspect
import json
import re
import reprlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
import transformers
from torch import nn

from utils import limits
from utils.errors import UserError, loading
from utils.files import read_json
from utils.hub import fetch_nothing

LIBRARIES = ("transformers", "diffusers")  # whose classes a pipeline's parts may be; no class of the folder's
# numbers of a config that say how often something is built
COUNTS = re.compile(r"layers|depth|heads$|blocks$|n_layer$")
# of a tokenizer.json: what changes the text, and what such a rule puts in
TEXT_RULES, GROWING = ("normalizer", "pre_tokenizer", "decoder"), ("content", "prepend", "replacement")


def load_whole(kind: type, name: str, flag: str, hint: str, **settings):  # noqa: ANN201 - whatever `kind` makes
    """`kind.from_pretrained(name, …)`, from safetensors, with every weight from the files.

    kind : class of transformers or diffusers.
    name : str. Local folder or hub address.
    flag, hint : str. The flag that named it, and what to do, for the message.
    Raises UserError if it cannot be loaded, or a weight is missing or of another shape: libraries make that one up.
    """
    quiet()
    refuse_code()
    folder = Path(name, settings.get("subfolder") or "")
    with loading(f"{flag} {name}", hint), building(f"{flag} {name}", folder):
        check_config(folder / "config.json")
        settings |= {"use_safetensors": True, "output_loading_info": True}
        failed = {}
        for variant in _variants(Path(name), settings.get("subfolder"), settings.get("dtype")):
            try:
                model, info = kind.from_pretrained(name, variant=variant, **settings)
                break
            except OSError as error:  # what both libraries raise where there is no such file
                failed[variant] = error
        else:
            raise failed[None] if None in failed else failed["fp16"]
        for fault in ("missing_keys", "mismatched_keys"):
            if info[fault]:
                keys = sorted(map(str, info[fault]))
                raise ValueError(f"{fault.replace('_', ' ')}: {keys[0]} and {len(keys) - 1} more")
    return model


def kind_of(name: str, flag: str, hint: str, known: Mapping, expected: str = "expected one of") -> tuple[str, dict]:
    """The model_type of a model's config.json, one of `known`; and how to load it: of this folder, without its code.

    flag, hint : str. As `load_whole`. expected : str. What stands before the known ones in the message.
    Raises UserError where there is no such model, or it is of another type.
    """
    safe = {"local_files_only": fetch_nothing(name, "config.json", flag), "trust_remote_code": False}
    with loading(f"{flag} {name}", hint):
        kind = transformers.PretrainedConfig.get_config_dict(name, **safe)[0].get("model_type")
    if kind not in known:
        raise UserError(f"{flag} {name} is a {kind}; {expected} {', '.join(known)}")
    return kind, safe


def load_processor(kind: type, name: str, **settings):  # noqa: ANN201 - whatever `kind` makes
    """`kind.from_pretrained(name, …)` of an image processor; ValueError where its pictures would be too large."""
    where = {key: value for key, value in settings.items() if key in ("local_files_only", "subfolder")}
    found, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name, **where)  # from either of two files
    check_numbers(found, "the image processor", limits.MAX_INPUT)
    return kind.from_pretrained(name, **settings)


def load_tokenizer(name: str, **settings):  # noqa: ANN201 - a tokenizer of transformers
    """`AutoTokenizer.from_pretrained(name, …)`; ValueError where its rules would make a short text very long."""
    check_tokenizer(Path(name))
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, **settings)
    if not isinstance(tokenizer.model_max_length, int | float):
        raise ValueError(f"its model_max_length is {reprlib.repr(tokenizer.model_max_length)}; expected a number")
    return tokenizer


def check_tokenizer(folder: Path) -> None:
    """Raise ValueError where a tokenizer.json's rules could make a character more than `MAX_GROWTH` of them, or a token
    has a number over `MAX_SIZE`.

    Their library ends the process where memory runs out: it keeps a place for each number. Rules that replace follow
    one another, so they multiply.
    """
    places = folder / "tokenizer.json", folder / "vocab.json"
    rules, vocabulary = (read_json(place) if place.is_file() else {} for place in places)
    model = rules.get("model")
    for tokens in (vocabulary, model.get("vocab") if isinstance(model, dict) else {}):
        numbers = tokens.values() if isinstance(tokens, dict) else ()
        if wrong := next((k for k in numbers if isinstance(k, int) and k > limits.MAX_SIZE), None):
            raise ValueError(f"a token has the number {reprlib.repr(wrong)}; at most {limits.MAX_SIZE} can be right")
    if len(json.dumps(rules.get("post_processor"))) > limits.MAX_TEMPLATE:
        raise ValueError(f"tokenizer.json puts over {limits.MAX_TEMPLATE} characters around a text; it is made to last")
    growth, waiting = 1, [rules.get(part) for part in TEXT_RULES]
    while waiting:
        rule = waiting.pop()
        waiting += rule if isinstance(rule, list) else rule.values() if isinstance(rule, dict) else []
        if isinstance(rule, dict):
            growth *= max([1, *(len(rule[key]) for key in GROWING if isinstance(rule.get(key), str))])
        if growth > limits.MAX_GROWTH:
            raise ValueError(f"tokenizer.json makes a character over {limits.MAX_GROWTH} of them; it is made to last")


def check_config(path: Path, most: int = limits.MAX_SIZE) -> None:
    """`check_numbers` of a JSON file of a model's folder, before a model is built of it."""
    if path.is_file():
        check_numbers(read_json(path), path.name, most)


def check_numbers(content: Mapping, what: str, most: int) -> None:
    """Raise ValueError where settings have a number that no model has. most : int. Of those that count no layers.

    Sizes of pictures may be written as floats; models refuse those by themselves.
    """
    numbers = int | float if most == limits.MAX_INPUT else int
    waiting = list(content.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, list | tuple):
            if len(value) > limits.MAX_LAYERS:
                raise ValueError(f"{what} has {len(value)} entries in {name}; at most {limits.MAX_LAYERS} can be right")
            waiting += [(name, part) for part in value]
        elif isinstance(value, Mapping):
            waiting += [(str(key), part) for key, part in value.items()]
        elif isinstance(value, numbers):
            counts = COUNTS.search(name.lower())
            least, limit = (0, limits.MAX_LAYERS) if counts else (-most, most)
            if not least <= value <= limit:
                bound = f"at most {limit}" if value > limit else f"at least {least}"
                raise ValueError(f"{what} has {name} {reprlib.repr(value)}; {bound} can be right")


@contextlib.contextmanager
def building(what: str, place: Path) -> Iterator[None]:
    """`bounded`, for a model of a local file or folder: by the size of its files; what the hub sends may take its time.

    Memory is not bounded where there is a GPU, whose library reserves addresses as it likes.
    """
    if not place.exists():
        yield
        return
    paths = [place, *place.rglob("*")]
    if odd := [path for path in paths if path.exists() and not path.is_file() and not path.is_dir()]:
        raise ValueError(f"{odd[0]} is no plain file")
    size = sum(path.stat().st_size for path in paths if path.is_file())
    more_bytes = None if torch.cuda.is_available() else 4 * size + limits.READING_BYTES
    with limits.bounded(what, limits.READING_SECONDS + size / limits.READING_RATE, more_bytes):
        yield


def built(kind: type, settings: dict, state: dict) -> nn.Module:
    """A model with the settings and the weights of a checkpoint; ValueError where they do not fit one another."""
    check_numbers(settings, "its settings", limits.MAX_SETTING)
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes the settings say
            shapes = {name: value.shape for name, value in kind(**settings).state_dict().items()}
    except (RuntimeError, NotImplementedError):  # an encoder that tries a trial while it is made
        shapes = None
    except UserError as error:
        raise ValueError(str(error)) from None
    if shapes is not None and shapes != {name: value.shape for name, value in state.items()}:
        raise ValueError("its weights do not fit its settings")
    model = kind(**settings)
    model.load_state_dict(state)
    return model


def load_pipeline(name: str, flag: str, hint: str, known: dict, without: dict, dtype, **local):  # noqa: ANN201
    """A diffusers pipeline of a known family, part by part; also its class's name.

    known : dict. The classes that model_index.json may name.
    without : dict. Class's name → parts that are left out.
    Raises UserError if it cannot be loaded, is of another family, or names a part that `part_class` refuses.
    """
    import diffusers

    quiet()
    refuse_code()
    with loading(f"{flag} {name}", hint), building(f"{flag} {name}", Path(name)):
        index = diffusers.DiffusionPipeline.load_config(name, **local)
        family = str(index.get("_class_name"))
        if family not in known:
            raise ValueError(f"it is a {family}; expected one of {', '.join(known)}")
        pipeline = getattr(diffusers, family)
        left_out, parts = set(without.get(family, ())), {}
        for part in set(inspect.signature(pipeline.__init__).parameters) & set(index):
            if nested := next(Path(name, part).rglob("model_index.json"), None):
                raise ValueError(f"{nested}: a part must not be a pipeline of its own")
            if part in left_out or not isinstance(index[part], list) or index[part][0] is None:
                continue
            check_config(Path(name, part, "scheduler_config.json"))
            for file in ("preprocessor_config.json", "processor_config.json"):
                check_config(Path(name, part, file), limits.MAX_INPUT)
            check_tokenizer(Path(name, part))
            kind = part_class(part, *map(str, index[part]))
            if issubclass(kind, transformers.PreTrainedModel | diffusers.ModelMixin):
                parts[part] = load_whole(kind, name, flag, hint, subfolder=part, dtype=dtype, **local)
        safe = {"use_safetensors": True, "trust_remote_code": False, "dtype": dtype}
        loaded = pipeline.from_pretrained(name, **local, **safe, **parts, **dict.fromkeys(left_out))
        for part in ("", "_2"):  # pipelines make every prompt as long as the tokenizer says
            tokenizer, reader = (getattr(loaded, kind + part, None) for kind in ("tokenizer", "text_encoder"))
            if tokenizer is not None and reader is not None:
                longest = min(tokenizer.model_max_length, reader.config.max_position_embeddings)
                tokenizer.model_max_length = longest
    return loaded, family


def part_class(part: str, library: str, name: str) -> type:
    """The class that a model_index.json names for a part: a model, scheduler, tokenizer or image processor.

    Raises ValueError for any other class. A pipeline, an AutoX or a processor reads more names of classes from files of
    the part's folder, and imports them.
    """
    import diffusers
    from diffusers.pipelines import stable_diffusion  # of the safety checker
    from diffusers.utils import _maybe_remap_transformers_class

    kinds = (diffusers.ModelMixin, diffusers.SchedulerMixin, transformers.PreTrainedModel)
    kinds += (transformers.PreTrainedTokenizerBase, transformers.ImageProcessingMixin)
    places = {"diffusers": diffusers, "transformers": transformers, "stable_diffusion": stable_diffusion}
    kind = getattr(places.get(library), _maybe_remap_transformers_class(name) or name, None)
    if not inspect.isclass(kind) or not issubclass(kind, kinds):
        expected = f"a model, scheduler, tokenizer or image processor of {' or '.join(LIBRARIES)}"
        raise ValueError(f"its {part} is a {library}.{name}; expected {expected}")
    return kind


def _variants(place: Path, subfolder: str | None, dtype) -> list[str | None]:  # noqa: ANN001 - torch.dtype
    """Which files to look for, in order: "fp16", of half precision, before the plain ones where that is wanted.

    Image models lie on the hub in both precisions, part by part, and half is half the download.
    """
    order = ["fp16", None] if "float16" in str(dtype) else [None, "fp16"]
    if not place.is_dir():
        return order if subfolder else [None]
    folder = place / (subfolder or "")
    halves = set(folder.glob("*.fp16*.safetensors"))
    there = {"fp16": halves, None: set(folder.glob("*.safetensors")) - halves}
    return [variant for variant in order if there[variant]][:1] or [None]


def refuse_code() -> None:
    """Close the doors through which these libraries run a folder's Python, however deep inside another class they ask.

    `trust_remote_code=False` reaches the outermost class only: a composite tokenizer, processor or model loads its
    parts without it, and asks on stdin. A pipeline imports any module that its model_index.json names and does not ask;
    a file of a model's folder in pth/ has such a name (`pth.model.scheduler.file`). A config.json may name a kernel on
    the hub.
    """
    import diffusers.utils.dynamic_modules_utils
    import transformers.dynamic_module_utils
    import transformers.integrations.hub_kernels
    from diffusers.pipelines import pipeline_loading_utils

    def refuse(*_, **__) -> None:
        raise ValueError("it wants Python code of its own to be run; this project runs no code of a model's folder")

    for module in (transformers.dynamic_module_utils, diffusers.utils.dynamic_modules_utils):
        module.get_class_in_module = module.get_cached_module_file = refuse
    transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # nobody is asked on stdin, where "y" would run it
    transformers.dynamic_module_utils._raise_timeout_error = refuse
    transformers.integrations.hub_kernels.load_and_register_attn_kernel = refuse

    def import_own(name: str, package: str | None = None) -> ModuleType:
        return importlib.import_module(name, package) if name.split(".")[0] in LIBRARIES else refuse()

    def find_class(library_name, class_name, importable_classes, *_, component_name="part", **__) -> tuple:
        kind = part_class(component_name, library_name, class_name)
        return kind, dict.fromkeys(importable_classes, kind)

    pipeline_loading_utils.importlib = SimpleNamespace(import_module=import_own)
    pipeline_loading_utils.get_class_obj_and_candidates = find_class


def quiet() -> None:
    """No bars of the libraries where nobody watches a terminal."""
    if not sys.stderr.isatty():
        for library in LIBRARIES:
            if library in sys.modules:
                sys.modules[library].utils.logging.disable_progress_bar()
