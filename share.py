"""Send a finished training run to the hub: its card, weights, settings and scores. No other script sends anything.

    python share.py pth_downtasks/eeg_llm_bcic_new OWNER/NAME --show           # what would be sent; sends nothing
    python share.py pth_downtasks/eeg_llm_bcic_new OWNER/NAME --private
    python share.py pth_downtasks/eeg_llm_bcic_new OWNER/NAME --license cc-by-4.0 --rows

Sent are README.md (with the scores of the control RUN_shuffled, where it stands beside the run), the best epoch's
weights as safetensors, its LoRA adapter or ControlNet, config.json, results.json, run.json, metrics.jsonl,
learning_curve.png, and the language model where it is a small folder of this machine. Paths of this machine are cut
down to their last name. Recordings, stores, caches, states of an optimiser and .pth files are never sent; decoded
trials with --rows alone. Needs a token with the right to write: run `hf auth login`, or set HF_TOKEN. Whoever has it
loads it with OWNER/NAME where a flag takes a run.
"""

import argparse
import json
import re
from pathlib import Path

from utils import flags
from utils.errors import UserError, loading, reason
from utils.files import read_json
from utils.hub import ADDRESS, hub_answers
from utils.script import run_script, start_script

OF_A_RUN = ("config.json", "model.safetensors", "results.json", "run.json", "metrics.jsonl", "learning_curve.png")
ROWS = ("decoded_test.jsonl", "captions.jsonl")  # what was decoded of each test trial
OF_A_FOLDER = (".json", ".safetensors", ".jinja")  # endings of what a model's folder is made of
LANGUAGE_MODEL = "language_model"  # folder of one that nobody else can have, such as --llm tiny's
SMALL = 64 << 20  # bytes up to which it goes along
# a path of this machine inside a text, but for its last name: /a/b/c, ~/b/c; an address of a page is none
LOCAL_PATH = re.compile(r"""(?<![^\s"'=(`@])~?(?:/[^/\s"'`|<>]+)*/(?=[^/\s"'`|<>])""")


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    add = parser.add_argument
    add("run", help="folder of a finished training run")
    add("address", metavar="OWNER/NAME", help="model repository on the hub; made where it is not there")
    add("--private", action="store_true", help="make a repository that only you and your organisation see")
    add("--show", action="store_true", help="list what would be sent, with sizes and the card, and stop")
    add("--rows", action="store_true", help="send what was decoded of each test trial as well")
    add("--license", help="licence of the weights for the card, such as mit (default: as the card in the folder says)")
    add("--message", default="Send a training run", help="of the commit")
    args = parser.parse_args()
    address = ADDRESS.fullmatch(args.address)
    if not address or address["revision"]:
        parser.error(f"{args.address} is no OWNER/NAME")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import httpx
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants, errors, get_token

from stages.cards import CARD, newest_card, without_seal


def card_to_send(folder: Path, license: str | None) -> str:
    """The run's card, with the licence that is asked for."""
    text = newest_card(folder)
    with loading(str(folder / CARD), "mend its head, or remove it: it is written anew then"):
        card = ModelCard(without_seal(text))
        if license:
            card.data.license, card.data.license_name = license, None
        return str(card)


def files_of(folder: Path, results: dict, rows: bool) -> dict[str, Path]:
    """Name in the repository → file, of a run that has been completed. UserError where there are no weights."""
    files = {name: folder / name for name in (*OF_A_RUN, *(ROWS if rows else ())) if (folder / name).is_file()}
    adapter, net = (folder / f"{name}_epoch{results.get('best_epoch')}" for name in ("lora", "controlnet"))
    for place, inside in ((adapter, f"{adapter.name}/"), (net, "")):
        if place.is_dir():
            files |= {inside + path.name: path for path in sorted(place.iterdir()) if path.suffix in OF_A_FOLDER}
    if not any(name.endswith(".safetensors") and "/" not in name for name in files):
        hint = "a run of before it was written gets it from its own command with --resume"
        raise UserError(f"{folder} has no model.safetensors; {hint}")
    epoch = read_json(files["config.json"]).get("epoch") if "config.json" in files else None
    if epoch != results.get("best_epoch") and not net.is_dir():
        what = f"{folder}: its weights are of epoch {epoch}, its results of epoch {results.get('best_epoch')}"
        raise UserError(f"{what}: it was interrupted, or is trained just now; end it with --resume")
    return files | {f"{LANGUAGE_MODEL}/{path.name}": path for path in small_language_model(folder)}


def small_language_model(folder: Path) -> list[Path]:
    """The files of the language model that a run was trained with, where it is a small folder of this machine."""
    llm = read_json(folder / "config.json").get("llm") if (folder / "config.json").is_file() else None
    if not isinstance(llm, str) or not Path(llm).is_absolute() or not Path(llm).is_dir():
        return []
    files = [path for path in sorted(Path(llm).iterdir()) if path.suffix in OF_A_FOLDER]
    return files if sum(path.stat().st_size for path in files) <= SMALL else []


def without_paths(content):  # noqa: ANN201 - of the type that came in
    """A text, or JSON, in which a path of this machine is its last name: the rest is of no use and may name people."""
    if isinstance(content, dict):
        return {key: without_paths(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_paths(value) for value in content]
    return LOCAL_PATH.sub("", content) if isinstance(content, str) else content


def send(address: str, private: bool, message: str, contents: dict[str, bytes | Path]) -> str:
    """One commit with all files; returns its address. UserError for what hub and network say."""
    if not get_token():
        raise UserError("no token for the hub; run `hf auth login` with one that may write, or set HF_TOKEN")
    if not hub_answers():
        raise UserError(f"{constants.ENDPOINT} cannot be reached (or HF_HUB_OFFLINE is set); nothing was sent")
    adds = [CommitOperationAdd(name, content) for name, content in contents.items()]
    api = HfApi()
    try:
        api.create_repo(address, private=private or None, exist_ok=True)
        if private and not api.model_info(address).private:
            raise UserError(
                f"{address} is there and public; nothing was sent: choose another name, or leave out --private"
            )
        return str(api.create_commit(address, adds, commit_message=message).commit_url)
    except errors.HfHubHTTPError as error:
        what, code = reason(error), error.response.status_code if error.response is not None else 0
        hint = "the token may not write there: is it yours, and of the kind that writes?" if code in (401, 403) else ""
        raise UserError(f"{address}: {constants.ENDPOINT} refuses ({what}); {hint or 'try again later'}") from None
    except (httpx.HTTPError, errors.HFValidationError, OSError) as error:
        raise UserError(f"{address}: cannot be sent to {constants.ENDPOINT} ({reason(error)}); try again") from None


def main(args: argparse.Namespace) -> None:
    folder = Path(args.run)
    if not all((folder / name).is_file() for name in ("results.json", "run.json")):
        raise UserError(
            f"{folder} has no results.json and run.json; name the folder of a training run that is finished"
        )
    results = read_json(folder / "results.json")
    files = files_of(folder, results, args.rows)
    contents: dict[str, bytes | Path] = {CARD: without_paths(card_to_send(folder, args.license)).encode()}
    for name, path in files.items():
        contents[name] = path
        if path.suffix == ".json" and not name.startswith(LANGUAGE_MODEL):  # a vocabulary is no path
            content = without_paths(read_json(path))
            if name == "config.json" and f"{LANGUAGE_MODEL}/config.json" in files:
                content["llm"] = LANGUAGE_MODEL
            contents[name] = json.dumps(content, indent=2).encode() + b"\n"
    for name, content in contents.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        print(f"{size:>12,} bytes  {name}")
    if args.show:
        print(f"\n{CARD}:\n\n{contents[CARD].decode()}\nnothing was sent: --show")
        return
    print(f"sent: {send(args.address, args.private, args.message, contents)}")


if __name__ == "__main__":
    run_script(lambda: main(args), go_on="nothing was sent, or all of it")
