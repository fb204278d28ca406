"""The model card of a training run, README.md beside its results.json: a function of the run's own files."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from datasets.description import SPLITS, load_description
from datasets.splits import caution
from stages.scores import percent
from utils.errors import UserError, loading
from utils.files import read_json
from utils.hub import ADDRESS
from utils.paths import written_whole

CARD, CONTROL = "README.md", "_shuffled"
SEAL = "\n<!-- as written by training; who edits it keeps it: {} -->\n"  # with a digest of all that stands before it
LIBRARY = "eeg2image"
MOST_NAMES = 30  # of people or sessions in a line
FEW_TRIALS = 100  # of a test, below which the interval is wider than most effects


class Kind(NamedTuple):
    """What a training script makes: in words, the card's tags, and the command that reads it, by --what or --target."""

    what: str
    tags: tuple[str, ...]
    use: Mapping[str, str]


DRAW = "generate_eeg2img.py --model_dir ENCODER "
MAPS = "generate_eeg2img.py --conditioning controlnet --model_dir ENCODER "
KINDS = {
    "finetune_eeg_llm.py": Kind(
        "EEG → text: a projection of EEG tokens into a language model, and a LoRA adapter for it",
        ("eeg-to-text", "lora"),
        {"": "generate.py --projection_dir {}"},
    ),
    "finetune_eeg_to_image.py": Kind(
        "EEG → CLIP space: a mapper of EEG tokens to an image model's conditioning, with a class head",
        ("eeg-to-image",),
        {"": "generate_vi_eeg2img.py --mapper_path {}"},
    ),
    "finetune_eeg_to_clip.py": Kind(
        "EEG of seen images: an encoder towards --target {target}",
        ("eeg-of-seen-images",),
        {
            **dict.fromkeys(("image", "text", "vision"), "retrieve.py {}"),
            "structure": MAPS + "--structure_dir {}",
            "vae_latent": DRAW + "--low_level_dir {}",
            "text_states": "generate_text_states.py --model_dir {}",
        },
    ),
    "train_prior.py": Kind(
        "embeddings of EEG of seen images → what is drawn from: --what {what}",
        ("eeg-of-seen-images",),
        {"prior": DRAW + "--prior_dir {}", "caption": DRAW + "--caption_dir {}"},
    ),
    "train_structure.py": Kind(
        "the structure of pictures, from pictures alone: --what {what}",
        ("image-structure",),
        {"vae": MAPS + "--structure_vae {}", "controlnet": MAPS + "--controlnet {}"},
    ),
}
UNKNOWN = Kind("a model of this project", (), {})
WEIGHTS = (
    "Weights are in `model.safetensors` (or in the hub's layout of a ControlNet), all else is in `config.json`; a "
    "LoRA adapter is in `lora_epochN/`. Reading them runs no code."
)
LICENCE = (
    "The code is under the MIT licence. The weights carry the terms of the recordings that trained them and of "
    "the models that they belong to; see docs/datasets.md and docs/weights.md. Whoever shares them sets the licence."
)


def who_is_in(splits: Mapping, protocol: str) -> dict:
    """What a run's record says of its data, for the card.

    splits : mapping of mode to TrialDataset. Where there are none, nothing is said.
    """
    if not splits:
        return {}
    first = next(iter(splits.values()))
    about = {"dataset": first.description.name, "protocol": protocol, "simulated": first.simulated}
    return about | {
        mode: {
            "people": sorted({trial.subject for trial in dataset.trials}),
            "sessions": sorted({str(trial.session) for trial in dataset.trials}),
            "trials": len(dataset),
            "images": len({trial.image for trial in dataset.trials if trial.image}),
        }
        for mode, dataset in splits.items()
    }


def read_control(folder: Path) -> dict | None:
    """The results of a run's shuffled-label control, the folder RUN_shuffled beside it; None where there is none."""
    control = folder.resolve().with_name(folder.resolve().name + CONTROL)
    if not all((control / name).is_file() for name in ("results.json", "run.json")):
        return None
    arguments = read_json(control / "run.json").get("arguments")
    is_control = isinstance(arguments, dict) and arguments.get("shuffle_labels") is True
    return read_json(control / "results.json") if is_control else None


def write_card(folder: Path, card: str) -> None:
    """Put a card into a run's folder."""
    with written_whole(folder / CARD) as unfinished:
        unfinished.write_text(card, encoding="utf-8")


def newest_card(folder: Path) -> str:
    """A finished run's card with its control's scores; one that somebody has edited as it is."""
    with loading(str(folder / CARD), "expected text in UTF-8; mend it, or remove it: it is written anew then"):
        kept = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    text, _, _ = kept.rpartition(SEAL.split("{")[0])
    if kept not in ("", _sealed(text)):
        return kept
    return model_card(folder, read_json(folder / "results.json"), read_control(folder))


def without_seal(card: str) -> str:
    """A card for others, who need not know whether it was edited."""
    return card.rpartition(SEAL.split("{")[0])[0] or card


def _sealed(text: str) -> str:
    return text + SEAL.format(hashlib.sha256(text.encode()).hexdigest()[:16])


def model_card(folder: Path, results: Mapping, control: Mapping | None = None) -> str:
    """The card's text: YAML head, what was trained on whom, scores, command, caveats.

    results, control : mapping. results.json of the run, and of its shuffled-label control where that is known.
    Raises UserError where run.json or the results are damaged.
    """
    record = read_json(folder / "run.json")
    with loading(str(folder / "run.json"), "train again, or restore it"):
        arguments, data, test = record["arguments"], record.get("data", {}), results["test"]
        kind = KINDS.get(str(record.get("command", "python train.py")).split()[1], UNKNOWN)
        name, dataset = folder.resolve().name, str(data.get("dataset") or arguments.get("downstream_dataset"))
        encoder, asked = arguments.get("encoder"), {key: arguments.get(key) for key in ("what", "target")}
        tags = ["eeg", LIBRARY, *kind.tags]
        tags += [f"encoder-{encoder.partition('@')[0].replace(':', '-')}"] if encoder else []
        parts = [f"# {name}"]
        if data.get("simulated"):
            tags.append("simulated-data")
            parts.append("> **Simulated recordings.** No person was recorded; the scores say nothing about people.")
        if arguments.get("shuffle_labels"):
            tags.append("shuffled-label-control")
            wrong = "It was trained on labels that are wrong on purpose; it decodes nothing."
            parts.append(f"> **A shuffled-label control.** {wrong}")
        head = ModelCardData(
            library_name=LIBRARY,
            license="other",
            license_name="of-the-recordings-and-the-base-model",
            base_model=_base_model(folder),
            tags=tags,
            datasets=[_plain(dataset)],
            metrics=sorted({_metric(score) for score in test.values()}) or None,
            model_name=name,
            eval_results=[_eval_result(name, score, results, data, dataset) for name, score in test.items()] or None,
        )
        best = f"the best one by {results['selected_by']} on the validation trials"
        chosen = best if results["val"] else "the last one, as nothing validates"
        parts += [f"{kind.what.format(**asked)}.", f"Epoch {results['best_epoch']}, {chosen}."]
        parts += ["## Trained on", *_people(data, dataset), "## Scores", *_scores(results, control)]
        made, n = record.get("environment", {}), record.get("num_processes", 1)
        versions = [f"{of} {made[of]}" for of in ("python", "torch", "transformers", "peft") if of in made]
        with_what = f"{', '.join(versions)}; {n} process{'es' if n != 1 else ''}"
        parts += ["## Made by", f"```bash\n{record.get('command', 'not recorded')}\n```"]
        parts += [f"Commit {made.get('commit', 'unknown')}; {with_what}.", "## Use"]
        if command := kind.use.get(str(asked["what"] or asked["target"] or "")) or kind.use.get(""):
            parts.append(f"```bash\npython {command.format('OWNER/NAME')} …\n```")
        caveats = _caveats(results, control, arguments, data, dataset)
        parts += [WEIGHTS, "## Caveats", "\n".join(f"- {line}" for line in caveats), "## Licence", LICENCE]
        return _sealed(str(ModelCard(f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")))


def _base_model(folder: Path) -> str | None:
    """The address of the language model that an adapter is for; None for a local folder."""
    llm = read_json(folder / "config.json").get("llm") if (folder / "config.json").is_file() else None
    return llm if isinstance(llm, str) and ADDRESS.fullmatch(llm) else None


def _plain(name: str) -> str:
    """A data set's name as the hub takes it in a card's head."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "own"


def _metric(score: Mapping) -> str:
    return str(score.get("measure", "accuracy")).replace(" ", "_")


def _eval_result(name: str, score: Mapping, results: Mapping, data: Mapping, dataset: str) -> EvalResult:
    about = {key: score[key] for key in ("n", "people", "low", "high", "chance", "p") if key in score}
    about |= {"used_of_the_test_person": results["uses"]} if results.get("uses") else {}
    return EvalResult(
        task_type="eeg-decoding",
        dataset_type=_plain(dataset).lower(),
        dataset_name=dataset + (" (simulated)" if data.get("simulated") else ""),
        dataset_config=data.get("protocol"),
        dataset_split="test",
        metric_type=_metric(score),
        metric_name=name,
        metric_value=score.get("accuracy", score.get("value")),
        metric_args=about,
    )


def _table(heads: list[str], rows: list[list]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def _people(data: Mapping, dataset: str) -> Iterator[str]:
    if not data:
        yield f"{dataset}; run.json is of an older version and does not say whom."
        return
    yield f"{dataset}{', simulated' if data['simulated'] else ''}, `--protocol {data['protocol']}`."

    def named(names: list[str]) -> str:
        more = f" and {len(names) - MOST_NAMES} more" if names[MOST_NAMES:] else ""
        return ", ".join(names[:MOST_NAMES]) + more

    of = [data[mode] for mode in SPLITS]
    who = [[len(o["people"]), named(o["people"]), named(o["sessions"]), o["trials"], o["images"] or "–"] for o in of]
    rows = [[mode, *line] for mode, line in zip(SPLITS, who, strict=True)]
    yield _table(["split", "people", "who", "sessions", "trials", "images"], rows)


SCORES_HEAD = ["split", "read-out", "score", "n", "people", "95 % interval", "chance", "p"]


def score_lines(results: Mapping) -> list[list]:
    """The lines of a card's table of scores, by column of `SCORES_HEAD`; results : mapping. results.json of the run."""
    return [_score_line(split, name, score) for split in ("test", "val") for name, score in results[split].items()]


def _scores(results: Mapping, control: Mapping | None) -> Iterator[str]:
    rows = score_lines(results)
    of_control = (control or {}).get("test", {}).items()
    rows += [_score_line("test, shuffled-label control", k, score) for k, score in of_control if k in results["test"]]
    if not results["test"]:
        yield "The store has no test trials, so there is no test score."
    if results.get("uses"):
        yield f"Used of the test person, besides the trial that is decoded: {results['uses']}."
    if rows:
        yield _table(SCORES_HEAD, rows)


def _score_line(split: str, name: str, score: Mapping) -> list:
    if "accuracy" not in score:
        interval = f"{score['low']:.3f} to {score['high']:.3f}"
        return [split, name, f"{score['measure']} {score['value']:.3f}", score["n"], "–", interval, "–", "–"]
    accuracy, low, high, chance = (percent(score[key]) for key in ("accuracy", "low", "high", "chance"))
    if score.get("recording_line"):
        chance += f" (the recording alone: {percent(score['recording_line'])})"
    return [split, name, accuracy, score["n"], score["people"], f"{low} to {high}", chance, f"{score['p']:.2g}"]


def _caveats(
    results: Mapping, control: Mapping | None, arguments: Mapping, data: Mapping, dataset: str
) -> Iterator[str]:
    if data.get("simulated"):
        yield "The recordings are simulated: effects are as strong as the simulation makes them."
    if any("accuracy" in score for score in results["test"].values()):
        yield (
            "Intervals are Wilson's over trials: they speak of these people, not of people in general. Chance is the "
            "best constant answer on these trials."
        )
    if any(score["n"] < FEW_TRIALS for score in results["test"].values()):
        yield f"The test has fewer than {FEW_TRIALS} trials: small differences mean nothing."
    if not control and not arguments.get("shuffle_labels"):
        yield "No shuffled-label control is known. It is the same command with --shuffle_labels and RUN_shuffled."
    if arguments.get("use_pretrained_weights") is False:
        yield "The encoder had random weights, as asked for."
    with suppress(KeyError, UserError):
        yield from filter(None, [caution(load_description(dataset), str(data.get("protocol", "")))])
    yield "It was trained on these electrodes, this rate and this window; others are refused or mean something else."
    yield "Not for medical use, and not for decoding anybody who has not agreed to it."
