"""Motor imagery: EEG → text → image, with the checkpoints of finetune_eeg_llm.py.

    python generate.py --foundation_dir pth/CSBrain.pth \
        --projection_dir pth_downtasks/eeg_llm_bcic_new/projection_epoch6.pth \
        --lora_dir pth_downtasks/eeg_llm_bcic_new/lora_epoch6 \
        --datasets_dir data/BCICIV2a/processed_lmdb --downstream_dataset BCICIV2a \
        --num_samples 20 --generate_images --image_model stabilityai/stable-diffusion-2-1 --output_dir outputs/eeg2image

Stage `decode` writes decoded.jsonl and frees its models; stage `images` reads that file and draws what is missing.
The prompt comes from the decoded text and from nothing else; true labels name files and colour headers.
"""

import argparse
from pathlib import Path

from datasets.description import one_of, with_words
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
    flags.add_dataset_flags(parser, one_of(with_words()), "which dataset's words and montage")
    add("--projection_dir", default=default("pth_downtasks/eeg_llm_bcic_new"),
        help="projection_epochN.pth, a run's folder for its best epoch, or OWNER/NAME on the hub")
    add("--generate_images", action="store_true", help="draw; without it stage `all` ends with decoded.jsonl")
    flags.add_store_flags(parser, "data/BCICIV2a/processed_lmdb", PROTOCOLS, check_protocol)
    flags.add_generation_flags(parser, "outputs/eeg2image")
    flags.add_trained_encoder_flags(parser)
    flags.add_text_flags(parser, TEXT_READOUTS)
    flags.add_image_flags(parser, None, None, SCHEDULERS)
    # fmt: on
    args = parser.parse_args()
    flags.choose_protocol(parser, args, PROTOCOLS, None)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch
from torch.utils.data import DataLoader

from datasets.store import description_of_store
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
    description = description_of_store(args.datasets_dir, args.downstream_dataset, args.words, "BCICIV2a")
    args.downstream_dataset = description.name
    args.stimuli_dir = args.stimuli_dir or description.images_dir or default("data/VisualImagery/stimuli")
    device, output_dir = pick_device(args.cuda), Path(args.output_dir)
    draws = args.stage == "images" or (args.stage == "all" and args.generate_images)
    check_output(output_dir)
    if args.stage != "images":
        path, lora_dir = checkpoints.find_text_checkpoint(args.projection_dir, args.lora_dir)
        path, checkpoint = checkpoints.read_run_checkpoint(path, "text")
        description = checkpoints.as_trained(description, path, checkpoint, other_words=bool(args.words))
        args.protocol = args.protocol or checkpoint["protocol"]
    if draws:  # asked before anything is decoded
        stimuli = Stimuli(description.stimuli, len(description.classes), Path(args.stimuli_dir))
        image_model = image_model_address(args.image_model or description.image_model)
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
        record |= checkpoint_facts(encoder) | description.own_record()
        report_decoded(rows, output_dir, record)
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
