"""Decoded batches, kept as they are done: a run that dies loses one batch, and the next one decodes the rest."""

import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from datasets.trials import TrialDataset
from models.eeg_llm import EEGLanguageModel
from utils.checkpoints import as_bytes, fingerprint
from utils.files import code_digest
from utils.paths import append, written_whole


class DecodedPieces:
    """What a text model said of each batch of trials, in a file that lives until all of them are decoded and drawn.

    The file's name is a digest of all that decides what is said: weights, prompt, EEG tokens or samples, the batches,
    this code, and `settings`. So nothing is taken over from another run.

    chosen : sequence of int. Trials of `dataset` in the order in which they are decoded.
    rank : int. Which of several processes that share the work.
    settings : what else decides: precision, device, batch size, …
    """

    def __init__(
        self, folder: Path, model: EEGLanguageModel, dataset: TrialDataset, chosen: Sequence, rank: int = 0, **settings
    ):
        digest = hashlib.sha256(f"{code_digest()} {fingerprint(model)}".encode())
        read = dataset.changes([dataset.trials[index] for index in chosen])
        asked = [model.before_ids.tolist(), model.after_ids.tolist(), read, model.mirror is not None, settings]
        digest.update(json.dumps(asked, sort_keys=True).encode())
        for index in chosen:
            trial = dataset.trials[index]
            tokens = b"" if dataset.tokens is None else as_bytes(dataset.tokens[index])
            digest.update(f"{trial.key} {trial.checksum} ".encode() + tokens)
        self.path = folder / f".decoded-{rank}-{digest.hexdigest()[:24]}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        for other in set(folder.glob(f".decoded-{rank}-*.jsonl")) - {self.path}:
            other.unlink(missing_ok=True)
        self._done = self._read()
        if self._done:
            print(f"{len(self._done)} batches were decoded by a run that was interrupted; going on behind them")

    def get(self, number: int) -> list | None:
        """What was kept of a batch; None where it has to be decoded."""
        return self._done[number] if number < len(self._done) else None

    def add(self, decoded: list) -> None:
        """Keep the next batch, for JSON; it is on the disk when this returns."""
        append(self.path, _line(len(self._done), decoded))
        self._done.append(decoded)

    def _read(self) -> list[list]:
        """The batches that are whole; what a run was writing when it died is cut off."""
        done, whole, raw = [], b"", self.path.read_bytes() if self.path.is_file() else b""
        for line in raw.splitlines(keepends=True):
            try:
                decoded = json.loads(line)[1]
                if line != _line(len(done), decoded):
                    break
            except (ValueError, LookupError, TypeError, RecursionError):
                break
            done.append(decoded)
            whole += line
        if whole != raw:
            with written_whole(self.path) as unfinished:
                unfinished.write_bytes(whole)
        return done


def _line(number: int, decoded: list) -> bytes:
    return json.dumps([zlib.crc32(json.dumps([number, decoded]).encode()), decoded]).encode() + b"\n"
