"""The files of a project on osf.io: their list, by its public interface, page by page and folder by folder."""

from dataclasses import dataclass
from urllib.parse import urlparse

import requests

from utils.errors import UserError
from utils.network import trouble

ADDRESS = "https://api.osf.io/v2/nodes/{}/files/osfstorage/"
MOST_PAGES = 2000


@dataclass(frozen=True)
class OSFFile:
    """A file of a project."""

    path: str  # its folders and name, "/"-separated
    url: str
    size: int  # bytes
    md5: str | None


def list_files(node: str, address: str = ADDRESS) -> list[OSFFile]:
    """All files of a project, by its five letters.

    Raises UserError if osf.io does not answer as it should; addresses of another host are not followed.
    """
    first = address.format(node)
    host, waiting, found, pages = urlparse(first).netloc, [(first, "")], [], 0
    try:
        while waiting:
            url, folder = waiting.pop(0)
            if urlparse(url).netloc != host or (pages := pages + 1) > MOST_PAGES:
                raise ValueError("a list that leads elsewhere")
            answer = requests.get(url, timeout=60)
            answer.raise_for_status()
            content = answer.json()
            for entry in content["data"]:
                about = entry["attributes"]
                name = folder + str(about["name"])
                if about["kind"] == "folder":
                    waiting.append((entry["relationships"]["files"]["links"]["related"]["href"], name + "/"))
                else:
                    hashes = about.get("extra", {}).get("hashes", {})
                    found.append(OSFFile(name, entry["links"]["download"], int(about["size"]), hashes.get("md5")))
            if content.get("links", {}).get("next"):
                waiting.insert(0, (content["links"]["next"], folder))
    except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "fetch the files by hand (docs/datasets.md says which and where to) and use --skip_download"
        raise UserError(f"the file list of osf.io/{node} cannot be had ({trouble(error, first)}); {hint}") from None
    return found
