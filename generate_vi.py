"""Visual Imagery: EEG → text → class → image, with the checkpoints of finetune_eeg_llm.py --downstream_dataset VI.

    python generate_vi.py --datasets_dir data/VisualImagery/processed_lmdb \
        --projection_path pth_downtasks/eeg_llm_vi/projection_epoch5.pth \
        --lora_dir pth_downtasks/eeg_llm_vi/lora_epoch5 \
        --stimuli_dir data/VisualImagery/stimuli --num_samples 20 --output_dir outputs/vi_images

Stage `decode` writes decoded.jsonl and frees its models; stage `images` reads that file and draws what is missing,
with aMUSEd-512 in 12 steps at guidance 10. The prompt is that of the class that the decoded text names, or the text
itself where it names none; true labels name files and colour headers.
"""

import argparse
from pathlib import Path

from datasets.description import load_description
from datasets.splits import PROTOCOLS, check_protocol
from models import SCHEDULERS
from stages.rows import TEXT_READOUTS
from utils import flags
from utils.paths import default
from utils.script import run_script, start_script


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("--projection_path", default=default("pth_downtasks/eeg_llm_vi"),
        help="projection_epochN.pth, a run's folder for its best epoch, or OWNER/NAME on the hub")
    flags.add_store_flags(parser, "data/VisualImagery/processed_lmdb", PROTOCOLS, check_protocol)
    flags.add_generation_flags(parser, "outputs/vi_images")
    flags.add_trained_encoder_flags(parser)
    flags.add_text_flags(parser, TEXT_READOUTS)
    image_model = load_description("VI").image_model
    flags.add_image_flags(parser, image_model, "data/VisualImagery/stimuli", SCHEDULERS)
    # fmt: on
    args = parser.parse_args()
    flags.choose_protocol(parser, args, PROTOCOLS, None)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch
from torch.utils.data import DataLoader

from datasets.trials import TrialDataset, part_as_trained
from models.image_generator import EEGImageGenerator, image_model_address
from stages import checkpoints
from stages.adaptation import Adapter
from stages.pictures import PictureFolder, Stimuli, check_gpu_is_free, drawing_recipe
from stages.pieces import DecodedPieces
from stages.rows import draw_what, new_row, read_rows, text_readouts
from stages.runs import check_output, remove_pieces, report_decoded
from stages.tokens import checkpoint_facts
from utils.device import PRECISIONS, pick_device, pick_precision
from utils.hub import fetch_nothing
from utils.progress import progress


def main(args: argparse.Namespace) -> None:
    description = load_description("VI")
    device, output_dir = pick_device(args.cuda), Path(args.output_dir)
    draws = args.stage != "decode"
    check_output(output_dir)
    if args.stage != "images":
        path, lora_dir = checkpoints.find_text_checkpoint(args.projection_path, args.lora_dir)
        path, checkpoint = checkpoints.read_run_checkpoint(path, "text")
        description = checkpoints.as_trained(description, path, checkpoint)
        args.protocol = args.protocol or checkpoint["protocol"]
    if draws:  # asked before anything is decoded
        stimuli = Stimuli(description.stimuli, len(description.classes), Path(args.stimuli_dir))
        image_model = image_model_address(args.image_model)
        fetch_nothing(image_model, "model_index.json", "--image_model")

    # ------------------------------------------------------------ stage 1: EEG → decoded.jsonl
    if args.stage != "images":
        dataset = TrialDataset(args.datasets_dir, args.split, args.protocol, description)
        chosen = dataset.spread(args.num_samples)
        dataset = part_as_trained(dataset, checkpoint, path)
        checkpoints.check_unseen(checkpoint["seen"], checkpoint["protocol"], dataset, chosen, str(path))
        foundation = args.foundation_dir if args.use_pretrained_weights else None
        encoder = checkpoints.checkpoint_encoder(
            checkpoint, path, dataset, foundation, args.allow_partial, args.encoder_seed
        )
        precision = pick_precision(args.precision, device)
        model = checkpoints.load_text_model(
            checkpoint, path, lora_dir, args.llm, not args.no_quantize, PRECISIONS[precision], device,
            description, encoder.width,
        )  # fmt: skip
        how = args.cache_dir, not args.no_cache_features, device
        dataset = checkpoints.connect(model, checkpoint, encoder, dataset, *how)
        adapter = Adapter(checkpoint.get("adapt", "none"), model.class_logits, model.encoder, dataset, device)
        batches = adapter.batches(chosen, args.batch_size)
        settings = {
            "precision": precision,
            "device": device.type,
            "batch_size": args.batch_size,
            "max_new_tokens": args.max_new_tokens,
            "adapt": checkpoint.get("adapt"),
        }
        pieces = DecodedPieces(output_dir, model, dataset, [place for of in batches for place in of], **settings)
        rows = []
        with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"):
            model.read_prefix()
            loader = DataLoader(dataset, batch_sampler=batches)
            for number, batch in enumerate(progress(loader, desc="decoding", unit="batch")):
                adapter.before(batches[number])
                decoded = pieces.get(number)  # what an interrupted run has decoded already
                if decoded is None:
                    decoded = model.read(batch["x"].to(device), description.canonical, args.max_new_tokens)
                    pieces.add(decoded)
                adapter.after(batches[number])
                for index, (text, probabilities) in zip(batch["index"].tolist(), decoded, strict=True):
                    readouts = text_readouts(description, text, probabilities)
                    row = new_row(dataset, index, readouts, text, adapter.adaptation.uses)
                    rows.append(draw_what(row, description, args.readout))
        rows.sort(key=lambda row: row.index)  # which may have been decoded session by session
        record = {"arguments": vars(args), "store": dataset.store.fingerprint, "projection": str(path)}
        report_decoded(rows, output_dir, record | checkpoint_facts(encoder))
        del dataset, checkpoint, encoder, model, batch, adapter, loader  # the image stage has the GPU for itself

    # ------------------------------------------------------------ stage 2: decoded.jsonl → pictures
    if draws:
        rows = read_rows(output_dir / "decoded.jsonl", description.classes)
        how = args.num_inference_steps, args.guidance_scale, args.image_size, args.scheduler
        recipe = drawing_recipe(image_model, *how)
        pictures = PictureFolder(output_dir, rows, recipe, args.seed)
        if pictures.missing:
            check_gpu_is_free(device, args.max_held_mib)
            generator = EEGImageGenerator(image_model, device, *how)
            for row, seed in pictures.to_draw():
                pictures.keep(row, generator.generate(row.prompt, seed))
        pictures.finish(stimuli.of)
    remove_pieces(output_dir)  # all is decoded and drawn


if __name__ == "__main__":
    go_on = "what is decoded and drawn is kept; the same command goes on behind it"
    run_script(lambda: main(args), [Path(args.output_dir) / ".lock"], go_on)
