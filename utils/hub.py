"""Models from a local folder or the hub: whether one can be had at all, found out within seconds."""

import contextlib
import functools
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, reason
from utils.files import feed, source_record
from utils.network import trouble

TIMEOUT = 5.0  # seconds
NAME = r"[A-Za-z0-9][\w.-]*"
ADDRESS = re.compile(rf"(?P<repo>{NAME}/{NAME})(@(?P<revision>\w[\w./-]*))?")  # OWNER/NAME, OWNER/NAME@revision
FILE_ENDINGS = (".pth", ".pt", ".bin", ".safetensors", ".json", ".jsonl")  # no repository is called so
PLAIN_FILES = ("*.json", "*.safetensors", "*.jinja", "README.md")  # of a run: no pickles, no code


def address_in(place: str | Path) -> re.Match | None:
    """The parts `repo` and `revision` of a hub address; None for a path.

    A path that is there always wins. So does one whose folder is there: a name that was mistyped is not asked for on
    the hub, but where a revision stands behind it.
    """
    found, path = ADDRESS.fullmatch(str(place)), Path(place)
    if not found or path.exists() or path.name.endswith(FILE_ENDINGS):
        return None
    return None if path.parent.exists() and not found["revision"] else found


def local_folder(place: str | Path, needed: str | None, files: Sequence[str] = PLAIN_FILES) -> Path:
    """What a flag names as a path: a path as it is, a hub address as the folder of its files on this machine.

    needed : str, optional. A file without which the repository is something else; then nothing more is fetched.
    files : sequence of str. Patterns of what is fetched.
    Raises UserError where the address cannot be had.
    """
    if not (address := address_in(place)):
        return Path(place)
    from huggingface_hub import constants, errors, hf_hub_download, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    how = {"revision": address["revision"], "local_files_only": not hub_answers()}
    try:
        if needed:
            hf_hub_download(address["repo"], needed, **how)
        return Path(snapshot_download(address["repo"], allow_patterns=list(files), **how))
    except errors.RevisionNotFoundError:
        raise UserError(f"{place}: {address['repo']} has no revision {address['revision']}; name another one") from None
    except errors.RepositoryNotFoundError:
        private = "a private one needs a token: hf auth login, or HF_TOKEN"
        raise UserError(f"{place}: no such folder here, no such model on {constants.ENDPOINT}; {private}") from None
    except errors.LocalEntryNotFoundError:
        where = f"not in the hub's cache, and {constants.ENDPOINT} gives it not now"
        raise UserError(f"{place}: no such folder here, {where}; name a local folder, or try again") from None
    except errors.EntryNotFoundError:
        raise UserError(f"{place}: has no {needed}, so share.py did not send it; name a run of this project") from None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise UserError(f"{place}: cannot be fetched from {constants.ENDPOINT} ({reason(error)})") from None


def fetch_nothing(name: str, file: str, flag: str) -> bool:
    """Whether a model is to be loaded from this machine alone.

    name : str. Local folder or hub address.
    file : str. A file that every model of the kind has: "config.json", "model_index.json".
    flag : str. The flag that named it, for the message.
    Raises UserError if it is neither a folder with that file, nor in the hub's cache, nor the hub can be asked.
    """
    if Path(name).is_dir():
        if not (Path(name) / file).is_file():
            hint = "give a folder in the hub's layout"
            raise UserError(f"{flag} {name}: cannot be loaded: the folder has no {file}; {hint}")
        return True
    if hub_answers():
        return False
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with contextlib.suppress(HFValidationError):
        if isinstance(try_to_load_from_cache(name, file), str):
            return True
    why = f"no such folder, not in the hub's cache, and the hub cannot be reached ({hub_trouble()})"
    raise UserError(f"{flag} {name}: cannot be loaded: {why}; give a local folder")


def hub_answers() -> bool:
    """Whether the hub can be asked; False at once where HF_HUB_OFFLINE is set."""
    return not hub_trouble()


@functools.cache
def hub_trouble() -> str:
    """Why the hub cannot be asked, in words; empty where it can. Asked as the hub's own library asks."""
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") == "1":
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT, follow_redirects=False)
        return ""
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError, OSError) as error:
        named = "; HF_ENDPOINT names it" if "HF_ENDPOINT" in os.environ else ""
        why = f"{trouble(error, constants.ENDPOINT)}{named}"
        print(f"notice: {constants.ENDPOINT} cannot be reached ({why}); only models on this machine are used")
        return why


def has_file(repo: str, file: str) -> bool:
    """Whether a repository on the hub, or this machine's copy of it, has a file. False where nobody can tell."""
    from huggingface_hub import errors, hf_hub_download

    with contextlib.suppress(errors.EntryNotFoundError, errors.HFValidationError, errors.HfHubHTTPError, OSError):
        return bool(hf_hub_download(repo, file, local_files_only=not hub_answers()))
    return False


def model_identity(name: str) -> str:
    """What tells a model from another: SHA-256 of a file, or a folder's files; a hub address with its commit here.

    Read anew in each process: a folder whose files were exchanged is another model. Of an address that is not on this
    machine yet the small file with its settings is fetched, where the hub answers: the commit must be the same before
    and after the weights come.
    """
    return _of_files(name) if Path(name).exists() else f"{name} {_commit(name)}"


def _commit(address: str) -> str:
    """The commit of a hub address in this machine's cache, "" where there is none and the hub does not answer."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    files = ("config.json", "model_index.json")
    for fetch in (False, True):
        for file in files:
            with contextlib.suppress(EntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
                found = try_to_load_from_cache(address, file)
                if fetch and not isinstance(found, str) and hub_answers():
                    found = hf_hub_download(address, file)
                if isinstance(found, str):
                    return Path(found).parent.name
    return ""


@functools.cache
def _of_files(name: str) -> str:
    if Path(name).is_file():
        return source_record(Path(name))["sha256"]
    digest = hashlib.sha256()
    files = (p for p in Path(name).rglob("*") if p.suffix in (".json", ".safetensors", ".txt", ".model"))
    for path in sorted(p for p in files if p.is_file()):  # to read a pipe or a device would never end
        digest.update(f"{path.relative_to(name)} {path.stat().st_size} ".encode())
        feed(digest, path)
    return digest.hexdigest()
