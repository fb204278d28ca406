"""Downloads that continue where they stopped, for pooch."""

from pathlib import Path

import requests

from utils.errors import FULL_DISK, PLACE, UserError
from utils.network import trouble
from utils.progress import progress


class ResumingDownloader:
    """A downloader for `pooch.retrieve` that keeps an unfinished `.part` file and asks for the rest only.

    part : Path. Where the unfinished file is kept, beside its final place.
    timeout : float. Seconds without an answer after which an attempt ends.
    """

    def __init__(self, part: Path, timeout: float = 60):
        self.part, self.timeout = Path(part), timeout

    def __call__(self, url: str, output_file, pooch, check_only: bool = False) -> None:
        """Download `url` to `output_file`; raises `requests.RequestException` or `OSError` on a short file."""
        have = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=self.timeout) as answer:
            if answer.status_code == 416:  # nothing left to send, or another file than the part's: start anew
                self.part.unlink()
                return self(url, output_file, pooch)
            answer.raise_for_status()
            if answer.status_code != 206:  # the server sends the file whole
                have = 0
            left = int(answer.headers.get("Content-Length", 0))
            with (
                open(self.part, "ab" if have else "wb") as out,
                progress(total=have + left, initial=have, unit="B", unit_scale=True, desc=self.part.stem) as bar,
            ):
                for chunk in answer.iter_content(1 << 18):
                    out.write(chunk)
                    bar.update(len(chunk))
        size = self.part.stat().st_size
        if left and size != have + left:
            raise OSError(f"{url}: {size} bytes instead of {have + left}")
        self.part.replace(output_file)


def download(urls: list[str], path: Path, attempts: int = 3, md5: str | None = None) -> None:
    """Fetch a file from the first address that gives it whole; a file that is there already is left alone.

    urls : list of str. Tried in this order, `attempts` times.
    md5 : str, optional. What the file must hash to. Without it, the size that the server states is the check.
    Raises UserError if no address gives it.
    """
    import pooch  # slow to import, and most runs download nothing

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel("ERROR")
    reasons = []
    for url in urls * attempts:
        try:
            downloader = ResumingDownloader(path.with_name(path.name + ".part"))
            known_hash = f"md5:{md5}" if md5 else None
            pooch.retrieve(url, known_hash=known_hash, fname=path.name, path=path.parent, downloader=downloader)
            return
        except (requests.RequestException, OSError) as error:
            if not isinstance(error, requests.RequestException) and error.errno in (*FULL_DISK, *PLACE):
                raise  # no address can help there
            reasons.append(f"{url}: {trouble(error, url)}")
        except ValueError:  # pooch's word for another hash; it has removed the file
            reasons.append(f"{url}: another md5 sum than {md5}")
    hint = f"run again to go on, or put the file into {path.parent} by hand and use --skip_download"
    raise UserError(f"could not download {path.name} ({'; '.join(dict.fromkeys(reasons))}); what came is kept, {hint}")
