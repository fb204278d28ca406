"""Zero-shot retrieval: which of the test images (or sentences) a person saw, with the checkpoints of
finetune_eeg_to_clip.py.

    python retrieve.py pth_downtasks/things/atm_sub-08 --datasets_dir data/THINGS/processed_lmdb \
        --output_dir outputs/things/atm_sub-08
    python retrieve.py pth_downtasks/things/*                       # one table; windows and regions as figures
    python retrieve.py --published_checkpoint ATMS.pth --encoder atm --checkpoint_kind paper --subject sub-08 \
        --clip_model laion/CLIP-ViT-H-14-laion2B-s32B-b79K

Scores: top-1 and top-5 among all test images, and k-way for k = 2, 4, 10, 50, 100 exactly (no distractors are drawn), a
person and on average, for retrieval (images) and classification (sentences); by the number of test repetitions.
RUN_shuffled beside a run is its control. Leaves in --output_dir, for each run: retrieval.jsonl (a rank a test image;
evaluate.py reads it), run.json, top5.png, repetitions.png; and scores.csv, scores.md; windows_N.png and regions_N.png
where runs differ in --tmin and --tmax, or in --channels, alone.
"""

import argparse
import functools
from pathlib import Path

from datasets.alignment import ALIGNMENTS
from datasets.description import load_description, of_images
from datasets.splits import caution
from models import GEOMETRIES, choose
from models.recipes import ATM_KINDS
from utils import flags
from utils.errors import UserError
from utils.paths import cache_folder, default
from utils.script import run_script, start_script

PUBLISHED = ("atm", "nice", "ubp")
AT_ONCE = 8  # test images embedded at once: several processes share such batches


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("runs", nargs="*",
        help="folders of finetune_eeg_to_clip.py, checkpoints encoder_epochN.pth in them, or OWNER/NAME on the hub")
    add("--datasets_dir", default=default("data/THINGS/processed_lmdb"), help="trial store")
    add("--images_dir", help="folder of the images that were seen (default: as the store says, or data/THINGS/images)")
    add("--output_dir", default=default("outputs/retrieval"), help="folder for rows, tables and figures")
    add("--clip_model", help="CLIP: local folder or hub address (default: the one trained with)")
    add("--clip_features", nargs="+", metavar="FILE",
        help="files of CLIP embeddings in place of --clip_model's (default: those trained with)")
    flags.add_encoded_flags(add)
    add("--test_repetitions", type=flags.at_least(1), nargs="+",
        help="numbers of averaged repetitions for the curve (default: 1, 2, 5, … up to all)")
    add("--num_samples", type=flags.at_least(1), default=12, help="trials on the sheet of top 5")
    add("--geometry", nargs="+", choices=list(GEOMETRIES), default=["plain"],
        help="how near is measured. whiten, csls, procrustes look at all test embeddings of the person, without "
        "labels; their rows lie in folders of their own")
    published = parser.add_argument_group("a checkpoint of a published repository").add_argument
    published("--published_checkpoint", nargs="+",
        help="its file, a state dict of weights only; of nice both, Enc_eeg and Proj_eeg")
    published("--encoder", choices=PUBLISHED, default="atm", help="which network it is of")
    published("--checkpoint_kind", choices=list(ATM_KINDS), default="develop",
        help="atm: which published state: main keeps the person's token and drops O2, and adds positions since "
        "December 2025; paper: before that; develop: the electrodes' tokens, develop_sinusoid: with positions. All of "
        "them load alike, and compute different things")
    published("--downstream_dataset", choices=of_images(), default="THINGS", help="which dataset")
    published("--subject", help="whose test images, e.g. sub-08")
    published("--channels", nargs="+", default=["all"], help="electrodes that it reads, e.g. posterior for ubp")
    flags.add_run_flags(parser)
    # fmt: on
    args = parser.parse_args()
    if bool(args.runs) == bool(args.published_checkpoint):
        parser.error("name runs, or --published_checkpoint")
    if args.published_checkpoint and not (args.subject and args.clip_model):
        parser.error("--published_checkpoint needs --subject and --clip_model")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch
from torch.nn import functional as F

from datasets.repetitions import Group, repetitions, some_repetitions
from datasets.trials import TrialDataset
from evaluation import decoded_runs, figures, tables
from models.eeg_embedding import embedder_named
from stages import TARGETS, clip_runs, retrieval
from stages.clip_runs import ClipRun
from stages.pictures import top_sheet
from stages.rows import Row, used_besides, write_rows
from stages.targets import TargetSettings, missing_photos
from utils.files import environment, read_json, write_json
from utils.hub import local_folder
from utils.paths import written_whole
from utils.processes import Processes, start_processes


def runs_of(args: argparse.Namespace, device: torch.device) -> list[tuple[ClipRun, Path | None]]:
    """The models that are asked, each with its run's folder; a control stands behind its run."""
    if args.published_checkpoint:
        description = load_description(args.downstream_dataset)
        dataset = TrialDataset(args.datasets_dir, "test", f"within:{args.subject}", description)
        dataset = dataset.part(None, description.named_channels(args.channels))
        # the published table of people is numbered as they are: sub-08 is 8
        people = [""] + [f"sub-{k:02d}" for k in range(1, 100)] if embedder_named(args.encoder).takes_people else []
        paths = [Path(path) for path in args.published_checkpoint]
        model, dataset = clip_runs.open_published(paths, args.encoder, args.checkpoint_kind, dataset, people, device)
        about = {"target": "image", "objective": "nce", "clip_model": args.clip_model, "image_model": ""}
        about["protocol"] = f"within:{args.subject}"
        return [(ClipRun(paths[0].stem, about, model, dataset, people), None)]
    found = []
    for place in map(Path, args.runs):
        control = place.with_name(f"{place.name}_shuffled")
        for folder in (place, *([control] if control.is_dir() and str(control) not in args.runs else [])):
            run = clip_runs.open_clip_run(
                folder, args.datasets_dir, "test", args.foundation_dir, args.cache_dir, device
            )
            if not choose(TARGETS, run.checkpoint["target"]).ranks:
                was = run.checkpoint["target"]
                raise UserError(f"{folder} was trained towards {was}; retrieve.py ranks images and sentences")
            kept = local_folder(folder, "results.json")
            found.append((run, kept if kept.is_dir() else kept.parent))
    return found


def targets_of(args, run: ClipRun, images: list[str], cache_dir: Path) -> dict[str, torch.Tensor]:
    """What test images are ranked by, as the run's target says: embeddings of the images, and of their sentences."""
    about = {name: run.checkpoint[name] for name in ("objective", "clip_model", "image_model")}
    about |= {name: run.checkpoint.get(name) for name in ("clip_layer", "blur")}
    about |= {"clip_model": args.clip_model} if args.clip_model else {}
    about["clip_features"] = args.clip_features or (None if args.clip_model else run.checkpoint.get("clip_features"))
    settings = TargetSettings(images_dir=Path(args.images_dir), cache_dir=cache_dir, **about)
    target = choose(TARGETS, run.checkpoint["target"])(settings)
    return {
        name: torch.as_tensor(of) if isinstance(of, torch.Tensor) else torch.stack(of)
        for name, of in target.candidates(run.dataset, images).items()
    }


def embedded(
    run: ClipRun, n: int | None, width: int, seed: int, processes: Processes
) -> tuple[list[Group], torch.Tensor]:
    """All test images of each person, means of `n` repetitions (None: all), and their embeddings (N, width)."""
    groups = some_repetitions(repetitions(run.dataset), n, seed)
    outputs = retrieval.embed(run.model, run.dataset, groups, run.people, processes.device, AT_ONCE, processes)
    if outputs.shape[1:] != (width,):
        raise UserError(f"{run.name} gives embeddings of width {outputs.shape[1]}, --clip_model of width {width}")
    return groups, outputs


def rows_of(
    run: ClipRun, groups: list[Group], outputs: torch.Tensor, targets: dict, images: list[str], geometry: str = "plain"
) -> tuple[list[Row], dict[int, list[str]]]:
    """Rows of embedded test images with all read-outs, or by another geometry; and the five nearest images of each."""
    ask = functools.partial(retrieval.retrieval_rows, run.dataset, groups, outputs)
    if geometry == "plain":
        rows = ask(targets["retrieval"], images)
        if "classification" in targets:
            others = ask(targets["classification"], images, "classification")
            for row, other in zip(rows, others, strict=True):
                row.readouts |= other.readouts
        like = F.normalize(outputs, dim=-1) @ F.normalize(targets["retrieval"].float(), dim=-1).T  # (N, K)
    else:
        like = retrieval.similarities(groups, outputs, targets["retrieval"], geometry)
        rows = ask(targets["retrieval"], images, like=like)
        used_besides(rows, ALIGNMENTS["session"].uses)
    nearest = like.topk(min(5, len(images))).indices.tolist()
    return rows, {row.index: [images[k] for k in of] for row, of in zip(rows, nearest, strict=True)}


def main(args: argparse.Namespace) -> None:
    processes, output_dir = start_processes(args.cuda), Path(args.output_dir)
    lines, runs = [], runs_of(args, processes.device)
    names = [run.name for run, _ in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(
            f"two runs are called {twice}; they would write to one folder: ask for them one after the other, or rename "
            "a folder"
        )
    for run, folder in runs:
        images = run.images
        args.images_dir = args.images_dir or run.description.images_dir or default("data/THINGS/images")
        if len(images) < 2:
            raise UserError(f"{run.dataset.store.path} has {len(images)} test images; retrieval needs two or more")
        cache_dir = cache_folder(args.cache_dir, run.dataset.store.path)
        with processes.first_ahead():  # which keeps the images' embeddings
            targets = targets_of(args, run, images, cache_dir)
        place = output_dir / run.name if len(runs) > 1 else output_dir

        # ------------------------------------------------------------ all repetitions: rows and scores
        width = targets["retrieval"].shape[1]
        whole = embedded(run, None, width, args.seed, processes)
        most = max(len(group.trials) for group in repetitions(run.dataset))
        numbers = sorted({n for n in args.test_repetitions or (1, 2, 5, 10, 20, 40, 80) if n <= most} | {most})
        fewer = {n: embedded(run, n, width, args.seed, processes) for n in numbers if n != most}
        if not processes.first:  # all is embedded, which is what takes long
            continue
        rows, nearest = rows_of(run, *whole, targets, images)
        about = {decoded_runs.USED: rows[0].uses}
        about |= {"hubness": retrieval.hubness(nearest.values(), images)} if args.geometry != ["plain"] else {}
        lines += [line | about for line in retrieval.score_lines(run.name, rows)]
        write_rows(rows, place / "retrieval.jsonl")
        before = read_json(folder / "run.json") if folder and (folder / "run.json").is_file() else {}
        arguments = before.get("arguments", {})
        arguments |= {"datasets_dir": str(args.datasets_dir), "images_dir": str(args.images_dir)}
        write_json(before | {"arguments": arguments, "environment": environment()}, place / "run.json")

        # ------------------------------------------------------------ other geometries, which know all test trials
        for geometry in [name for name in args.geometry if name != "plain"]:
            of, near = rows_of(run, *whole, targets, images, geometry)
            about = {decoded_runs.USED: of[0].uses, "hubness": retrieval.hubness(near.values(), images)}
            scored = retrieval.score_lines(run.name, of)
            lines += [line | about | {"read-out": f"{line['read-out']}, {geometry}"} for line in scored]
            write_rows(of, place / geometry / "retrieval.jsonl")
            asked = {"geometry": geometry}
            own = before | {"arguments": arguments | asked, "environment": environment()}
            own |= {"fixed": before["fixed"] | asked} if isinstance(before.get("fixed"), dict) else {}
            write_json(own, place / geometry / "run.json")

        # ------------------------------------------------------------ fewer repetitions; a sheet
        of_number = {n: rows if n == most else rows_of(run, *fewer[n], targets, images)[0] for n in numbers}
        curve = [(n, retrieval.score_lines(run.name, of)) for n, of in of_number.items()]
        figures.repetitions_figure(curve, run.name, place / "repetitions.png")
        for n, of in curve[:-1]:
            (*_, line) = (line for line in of if line["read-out"] == "retrieval")
            lines.append(line | {decoded_runs.USED: rows[0].uses, "repetitions": n})
        some = rows[:: max(1, len(rows) // args.num_samples)][: args.num_samples]
        shown = sorted({image for row in some for image in (row.image, *nearest[row.index])})
        if lacking := missing_photos(shown, Path(args.images_dir)):
            print(f"notice: {len(lacking)} of {len(shown)} photos are not in {args.images_dir}; no top5.png is made")
        else:
            sheet = top_sheet(some, nearest, Path(args.images_dir), "retrieval")
            with written_whole(place / "top5.png") as unfinished:
                sheet.save(unfinished, format="PNG")

    # ------------------------------------------------------------ one table; windows and regions where runs differ in
    # them
    processes.end()
    if not processes.first:
        return
    heads, cells = retrieval.table(lines)
    text = tables.markdown(heads, cells)
    print(f"\n{text}\n\n{retrieval.NOTE}")
    for words in {caution(run.description, run.checkpoint["protocol"]) for run, _ in runs} - {""}:
        print(words)
    for name, content in {
        "scores.csv": tables.as_csv(list(dict.fromkeys(k for line in lines for k in line)), lines),
        "scores.md": text + "\n",
    }.items():
        with written_whole(output_dir / name) as unfinished:
            unfinished.write_text(content, encoding="utf-8")
    made = ablation_figures([output_dir / run.name for run, _ in runs], output_dir) if len(runs) > 1 else []
    print(
        f"wrote scores.csv, scores.md{''.join(f', {path.name}' for path in made)} and rows, curves and sheets in "
        f"{output_dir}"
    )


def ablation_figures(places: list[Path], folder: Path) -> list[Path]:
    """windows_N.png and regions_N.png of runs that differ in one of them alone."""
    runs, controls = decoded_runs.runs_and_controls(places, "_shuffled")
    groups = decoded_runs.belong_together(runs)
    lines = [
        tables.group_line(g, g[0].main_readout, [controls[r.place] for r in g if controls[r.place]]) for g in groups
    ]
    return figures.ablation_figures(groups, lines, folder)


if __name__ == "__main__":
    run_script(
        lambda: main(args),
        [Path(args.output_dir) / ".lock"],
        "the same command begins anew; targets that were embedded are kept",
    )
