"""JSON files, a source file's record, and what a run was made with."""

import csv
import hashlib
import importlib.metadata
import io
import json
import platform
import subprocess
from pathlib import Path

from utils.errors import UserError, loading
from utils.limits import MAX_JSON, must_be_plain
from utils.paths import ROOT, written_whole

ROOMS = ("datasets", "readers", "models", "stages", "evaluation", "utils")
PACKAGES = ("torch", "transformers", "diffusers", "peft", "bitsandbytes", "accelerate", "numpy", "scipy", "mne", "lmdb")


def environment() -> dict:
    """Versions of Python and the libraries that matter, and the commit (with "+" where files differ from it)."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
        commit += "+" if changed else ""
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    installed = {dist.metadata["Name"].lower() for dist in importlib.metadata.distributions()}
    versions = {name: importlib.metadata.version(name) if name in installed else "not installed" for name in PACKAGES}
    return {"commit": commit, "python": platform.python_version(), **versions}


def code_digest() -> str:
    """Tells this project's code from code that was edited: SHA-256 of all its Python files but the tests."""
    digest = hashlib.sha256()
    for file in sorted(path for room in ("", *ROOMS) for path in (ROOT / room).glob("*.py")):
        digest.update(f"{file.relative_to(ROOT)} ".encode() + file.read_bytes())
    return digest.hexdigest()


def source_record(path: Path) -> dict:
    """Name, size and SHA-256 of a source file."""
    feed(digest := hashlib.sha256(), path)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def feed(digest: "hashlib._Hash", path: Path) -> None:
    """Add a file's bytes to a digest, piece by piece."""
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)


def write_json(content: dict, path: Path) -> None:
    """Write a readable JSON file, whole or not at all."""
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def plain_bytes(path: Path, most: int) -> bytes:
    """A file's bytes; UserError where it has more than `most`, or is no plain file."""
    must_be_plain(path)
    if path.is_file() and path.stat().st_size > most:
        raise UserError(f"{path} has {path.stat().st_size} bytes; such a file has at most {most}")
    return path.read_bytes()


def read_json(path: Path) -> dict:
    """Read a JSON object; UserError where the file is missing, damaged or holds something else."""
    if not path.is_file():
        raise UserError(f"{path} is not there")
    content = plain_bytes(path, MAX_JSON)
    with loading(f"{path} is damaged", "expected JSON"):
        content = json.loads(content.decode())
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def read_csv(path: Path) -> list[dict]:
    """Lines of a table with a head, as text by column; empty where there is no such file; UserError where damaged."""
    if not path.is_file():
        return []
    content = plain_bytes(path, MAX_JSON)
    with loading(f"{path} is damaged", "expected a table"):
        return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def write_jsonl(rows: list[dict], path: Path) -> None:
    """Write one JSON object a line, whole or not at all."""
    with written_whole(path) as unfinished:
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
