"""Models from folders of strangers: none of their code runs, no weight is missing, and a failure is one line."""

import inspect
import re
import sys
from pathlib import Path

from utils.errors import loading

LIBRARIES = ("transformers", "diffusers")  # whose classes a pipeline's parts may be; no AutoX, no class of the folder's


def load_whole(kind: type, name: str, flag: str, hint: str, **settings):  # noqa: ANN201 - whatever `kind` makes
    """`kind.from_pretrained(name, …)`, from safetensors, with every weight from the files.

    kind : class of transformers or diffusers.
    name : str. Local folder or hub address.
    flag, hint : str. The flag that named it, and what to do, for the message.
    Raises UserError if it cannot be loaded, or a weight is missing or of another shape: libraries make that one up.
    """
    quiet()
    refuse_code()
    with loading(f"{flag} {name}", hint):
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


def load_pipeline(name: str, flag: str, hint: str, known: dict, without: dict, dtype, **local):  # noqa: ANN201
    """A diffusers pipeline of a known family, part by part; also its class's name.

    known : dict. The classes that model_index.json may name.
    without : dict. Class's name → parts that are left out.
    Raises UserError if it cannot be loaded, is of another family, or names a part that is not of these libraries.
    """
    import diffusers
    import transformers

    quiet()
    refuse_code()
    with loading(f"{flag} {name}", hint):
        index = diffusers.DiffusionPipeline.load_config(name, **local)
        family = str(index.get("_class_name"))
        if family not in known:
            raise ValueError(f"it is a {family}; expected one of {', '.join(known)}")
        pipeline = getattr(diffusers, family)
        left_out, parts = set(without.get(family, ())), {}
        for part in set(inspect.signature(pipeline.__init__).parameters) & set(index):
            if part in left_out or not isinstance(index[part], list) or index[part][0] is None:
                continue
            library, class_name = map(str, index[part])
            if library == "stable_diffusion" and part == "safety_checker":
                continue  # diffusers' own
            kind = getattr({"transformers": transformers, "diffusers": diffusers}.get(library), class_name, None)
            if not inspect.isclass(kind) or not hasattr(kind, "from_pretrained") or re.match("Auto[A-Z]", class_name):
                raise ValueError(
                    f"its {part} is a {library}.{class_name}; expected a class of {' or '.join(LIBRARIES)}"
                )
            if issubclass(kind, transformers.PreTrainedModel | diffusers.ModelMixin):
                parts[part] = load_whole(kind, name, flag, hint, subfolder=part, dtype=dtype, **local)
        loaded = pipeline.from_pretrained(
            name,
            **local,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            **parts,
            **dict.fromkeys(left_out),
        )
    return loaded, family


def _variants(place: Path, subfolder: str | None, dtype) -> list[str | None]:  # noqa: ANN001 - torch.dtype
    """Which files to look for, in this order: "fp16", those of half precision, before the plain ones where that is wanted.

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
    """Close the one door through which these libraries run a folder's Python, however deep inside another class they ask.

    `trust_remote_code=False` reaches the outermost class only: a composite tokenizer, processor or model loads its parts
    without it, and asks on stdin.
    """
    import diffusers.utils.dynamic_modules_utils
    import transformers.dynamic_module_utils

    def refuse(*_, **__) -> None:
        raise ValueError("it wants Python code of its own to be run; this project runs no code of a model's folder")

    for module in (transformers.dynamic_module_utils, diffusers.utils.dynamic_modules_utils):
        module.get_class_in_module = module.get_cached_module_file = refuse
    transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # nobody is asked on stdin, where "y" would run it
    transformers.dynamic_module_utils._raise_timeout_error = refuse


def quiet() -> None:
    """No bars of the libraries where nobody watches a terminal."""
    if not sys.stderr.isatty():
        for library in LIBRARIES:
            if library in sys.modules:
                sys.modules[library].utils.logging.disable_progress_bar()
