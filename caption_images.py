"""A caption for every image that was seen, by an image-captioning model: what text states are made of.

    python caption_images.py --images_dir data/EEGImageNet/images --output data/EEGImageNet/captions.jsonl
    python caption_images.py … --model microsoft/git-large-coco    # any BLIP, BLIP-2, GIT or ViT-GPT2

Beams of 5 by default, so that the same image gets the same caption again. A line an image: its path below --images_dir,
and the caption. An image that has a line already is passed over: after an interruption the same command goes on.
"""

import argparse
from pathlib import Path

from utils import flags
from utils.errors import UserError
from utils.locks import lock_beside
from utils.paths import default
from utils.script import run_script, start_script

IMAGES = (".jpg", ".jpeg", ".png")


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("--images_dir", default=default("data/EEGImageNet/images"), help="folder of images, however deep")
    add("--output", default=default("data/EEGImageNet/captions.jsonl"), help="the file of captions")
    add("--model", default="Salesforce/blip-image-captioning-base",
        help="captioning model: local folder or hub address")
    add("--beams", type=flags.at_least(1), default=5, help="of beam search")
    add("--max_tokens", type=flags.at_least(1), default=25, help="longest caption, in tokens")
    add("--batch_size", type=flags.at_least(1), default=16, help="images captioned at once")
    flags.add_run_flags(parser)
    # fmt: on
    return parser.parse_args()


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import json

from models.captioner import Captioner
from models.clip_targets import read_image
from readers.captions import known_captions
from utils.paths import append
from utils.processes import start_processes
from utils.progress import progress


def main(args: argparse.Namespace) -> None:
    folder, output, processes = Path(args.images_dir), Path(args.output), start_processes(args.cuda)
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES and p.name[0] != "." and p.is_file())
    if not images:
        raise UserError(f"--images_dir {folder} holds no image ({', '.join(IMAGES)})")
    with processes.first_ahead():
        known = known_captions(output)  # what was cut off by a kill is gone from the file
    processes.wait()  # all have looked before the first one writes
    missing = [path for path in images if path.relative_to(folder).as_posix() not in known]
    output.parent.mkdir(parents=True, exist_ok=True)
    if missing:
        captioner = Captioner(args.model, processes.device, args.beams, args.max_tokens)
        at_once = args.batch_size * processes.n
        with progress(total=len(missing), desc="captions", unit="image", disable=not processes.first) as bar:
            for start in range(0, len(missing), at_once):
                part = missing[start : start + at_once]
                captions = processes.each(lambda of: captioner([read_image(p) for p in of]), part, args.batch_size)
                for path, caption in zip(part, sum(captions, []), strict=True) if processes.first else ():
                    line = {"image": path.relative_to(folder).as_posix(), "caption": caption, "model": args.model}
                    append(output, json.dumps(line).encode() + b"\n")
                bar.update(len(part))
    processes.end()
    print(f"{output}: {len(images)} images, {len(missing)} captioned now, by {args.model}")


if __name__ == "__main__":
    lock = lock_beside(args.output)
    go_on = "captions that are written are kept; the same command goes on behind them"
    run_script(lambda: main(args), [lock], go_on)
