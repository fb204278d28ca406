"""Stage 2 of every pipeline: decoded trials → pictures, comparisons, the grid."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from models.image_generator import Conditioning, EEGImageGenerator, image_model_address
from utils.device import free_gpu_memory
from utils.drawing import comparison, summary_grid
from utils.errors import UserError
from utils.paths import written_whole


def draw_pictures(
    rows: list[dict],
    stimuli: dict[int, Image.Image],
    args,
    device: torch.device,
    condition: Callable[[EEGImageGenerator, dict], Conditioning] | None = None,
    told: Callable[[dict], dict] | None = None,
) -> None:
    """Draw the pictures that are missing in `args.output_dir`, then the comparisons and the grid.

    A picture carries its recipe, so that a repeated run draws only what is not there or was drawn otherwise. The true
    label names files and colours headers; neither the prompt nor the seed depends on it.

    Parameters
    ----------
    rows : list of dict
        Lines of `decoded.jsonl`, with `prompt`, `predicted_label` and `predicted_name`.
    stimuli : dict of label to picture
        What the person saw.
    args : argparse.Namespace
        The flags of `utils.flags.add_image_flags`, with `image_model` filled in.
    device : torch.device
    condition : callable, optional
        (generator, row) → what the image model is told; the row's prompt where it is None.
    told : callable, optional
        row → what `condition` depends on besides the prompt, for the recipe.

    Raises
    ------
    UserError
        If more than `args.max_held_mib` of GPU memory are still held, or the image model cannot be loaded.
    """
    output_dir = Path(args.output_dir)
    name = image_model_address(args.image_model)
    wanted, missing = {}, []
    for row in rows:
        stem = f"{row['index']:04d}_true{row['true_label']}_pred{row['predicted_label']}.png"
        recipe = {"prompt": row["prompt"], "seed": args.seed + row["index"], "model": name,
                  "steps": args.num_inference_steps, "guidance": args.guidance_scale, "size": args.image_size}  # fmt: skip
        recipe |= told(row) if told else {}
        wanted[stem] = (row, recipe)
        if drawn_with(output_dir / f"generated_{stem}") != recipe:
            missing.append(stem)
    if missing:
        held = free_gpu_memory(device)
        print(f"GPU memory still held before the image model loads: {held:.0f} MiB (limit {args.max_held_mib:.0f} MiB)"
              + ("" if device.type == "cuda" else "; no GPU in use"))  # fmt: skip
        if held > args.max_held_mib:
            raise UserError(
                f"{held:.0f} MiB of GPU memory are still held; the limit is --max_held_mib {args.max_held_mib:.0f}"
            )
        generator = EEGImageGenerator(name, device, args.num_inference_steps, args.guidance_scale, args.image_size)
        if generator.drawn_size < args.image_size:
            print(f"{name} draws {generator.drawn_size} × {generator.drawn_size} pixels, enlarged to {args.image_size}")
        for stem in tqdm(missing, desc="drawing", unit="image"):
            row, recipe = wanted[stem]
            picture = generator.generate(condition(generator, row) if condition else row["prompt"], recipe["seed"])
            note = PngImagePlugin.PngInfo()
            note.add_text("recipe", json.dumps(recipe))
            with written_whole(output_dir / f"generated_{stem}") as unfinished:
                picture.save(unfinished, format="PNG", pnginfo=note)

    for stem, (row, _) in wanted.items():
        with Image.open(output_dir / f"generated_{stem}") as picture:
            pair = comparison(stimuli[row["true_label"]], picture, row["true_name"], row["predicted_name"])
        with written_whole(output_dir / f"comparison_{stem}") as unfinished:
            pair.save(unfinished, format="PNG")
    for stem in wanted:  # a trial decoded otherwise before leaves a picture under another name
        for kind in ("generated", "comparison"):
            for path in output_dir.glob(f"{kind}_{stem.split('_')[0]}_true*_pred*.png"):
                if path.name != f"{kind}_{stem}":
                    path.unlink()
    with written_whole(output_dir / "summary_grid.png") as unfinished:
        summary_grid([output_dir / f"comparison_{stem}" for stem in wanted]).save(unfinished, format="PNG")
    print(f"{len(missing)} images drawn, {len(rows) - len(missing)} were there; {output_dir / 'summary_grid.png'}")


def drawn_with(path: Path) -> dict | None:
    """What a picture says it was drawn with; None where there is no whole picture."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return json.loads(picture.info["recipe"])
    except (OSError, KeyError, ValueError):
        return None
