"""What class decoding could reach at most: for each drawn trial, a picture from the prompt of its TRUE class.

    python draw_true_class.py outputs/vi_images outputs/vi_eeg2img

Takes folders of the generating scripts whose pictures are drawn. Each picture is drawn as its neighbour was (model,
steps, guidance, size, seed, as the neighbour's file says), but for the prompt. Goes to FOLDER/true_class, never among
the decoded pictures; evaluate.py --images scores them in a line of their own.
"""

import argparse
from pathlib import Path

from utils import flags
from utils.errors import UserError
from utils.script import run_script, start_script


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    parser.add_argument("folders", nargs="+", help="folders of generate.py, generate_vi.py or generate_vi_eeg2img.py")
    parser.add_argument("--image_model", help="the image model, where it is elsewhere now than the pictures say")
    parser.add_argument("--cuda", type=int, default=0, help="GPU to use; -1: CPU")
    flags.add_memory_flags(parser.add_argument)
    return parser.parse_args()


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

from evaluation.decoded_runs import description_of, read_run
from models import SCHEDULERS
from models.image_generator import EEGImageGenerator, read_prompts
from stages.pictures import (
    PictureFolder,
    drawn_with,
    fault_of,
    is_drawn,
    opened_whole,
    report_faults,
    save_with_recipe,
    together,
    true_class_picture,
)
from stages.rows import read_rows
from utils.files import write_json
from utils.processes import start_processes

# what a recipe has → whether it can be right: the file may be a stranger's
RECIPE = {
    "seed": lambda v: type(v) is int and 0 <= v < 2**63,
    "model": lambda v: isinstance(v, str) and bool(v),
    "steps": lambda v: v is None or (type(v) is int and 1 <= v <= 1000),
    "guidance": lambda v: v is None or (type(v) in (int, float) and 0 <= v <= 1000),
    "size": lambda v: type(v) is int and 8 <= v <= 4096,
}


def main(args: argparse.Namespace) -> None:
    processes = start_processes(args.cuda)
    for folder in map(Path, args.folders):
        run = read_run(folder)
        description = description_of(run)
        rows = read_rows(folder / "decoded.jsonl", description.classes)

        # ------------------------------------------------------------ how the neighbours were drawn
        names, recipes = PictureFolder(folder, rows, {}, 0), {}
        for row in rows:
            recipe = drawn_with(names.path("generated", row))
            if recipe is None or not all(name in recipe and fits(recipe[name]) for name, fits in RECIPE.items()):
                raise UserError(
                    f"{names.path('generated', row)} is not there, or does not say how it was drawn; draw first"
                )
            prompt = description.image_prompt(description.canonical[row.true_label])
            recipes[row.index] = {k: recipe[k] for k in (*RECIPE, "scheduler") if k in recipe} | {
                "model": args.image_model or recipe["model"],
                "prompt": prompt,
            }
            if recipe.get("scheduler", "dpm") not in list(SCHEDULERS):
                raise UserError(f"{names.path('generated', row)} was drawn with an unknown sampler; draw again")
        alike = [{k: v for k, v in recipe.items() if k not in ("seed", "prompt")} for recipe in recipes.values()]
        if any(recipe != alike[0] for recipe in alike):
            raise UserError(f"{folder}: its pictures were drawn in different ways; draw them again")

        # ------------------------------------------------------------ the same, from the true class
        missing = [row for row in rows if not is_drawn(true_class_picture(folder, row), recipes[row.index])]
        if mine := processes.share(missing):
            how, device, memory = alike[0], processes.device, args.max_memory_gb
            prompts, empty = read_prompts(how["model"], [recipes[row.index]["prompt"] for row in mine], device, memory)
            settings = how["steps"], how["guidance"], how["size"], how.get("scheduler", "dpm"), empty
            generator = EEGImageGenerator(how["model"], device, *settings, args.image_batch_size, memory)
            for rows_together in together(mine, generator.at_once, "drawing"):
                asked = [recipes[row.index] for row in rows_together]
                conditionings = [prompts[recipe["prompt"]] for recipe in asked]
                drawn = generator.draw(conditionings, [recipe["seed"] for recipe in asked])
                for row, recipe, picture in zip(rows_together, asked, drawn, strict=True):
                    save_with_recipe(picture, recipe, true_class_picture(folder, row))
            del generator  # its memory is free before the next folder's model loads
        processes.wait()
        if not processes.first:
            continue
        write_json(alike[0] | {"pictures": len(rows)}, folder / "true_class" / "true_class.json")
        print(
            f"{folder / 'true_class'}: {len(missing)} pictures drawn from the true class, {len(rows) - len(missing)} "
            "were there"
        )
        paths = [true_class_picture(folder, row) for row in rows]
        report_faults({path.name: fault_of(opened_whole(path)) for path in paths})
    processes.end()


if __name__ == "__main__":
    go_on = "what is drawn is kept; the same command goes on behind it"
    run_script(lambda: main(args), [Path(folder) / ".lock" for folder in args.folders], go_on)
