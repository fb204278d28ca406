import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from utils.download import download
from utils.errors import UserError

CONTENT = bytes(range(256)) * 4000  # about 1 MB


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT; `drop_after` bytes of the first answer are sent before the line goes dead."""

    drop_after, asked = None, []

    def do_GET(self):
        if "missing" in self.path:
            self.send_error(404)
            return
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].rstrip("-"))
        type(self).asked.append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        stop = len(CONTENT)
        if type(self).drop_after is not None:
            stop, type(self).drop_after = start + type(self).drop_after, None
        self.wfile.write(CONTENT[start:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def address():
    Server.asked, Server.drop_after = [], None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_a_dropped_download_goes_on_where_it_stopped(address, tmp_path):
    Server.drop_after = 700_000
    download([address + "A01T.mat"], tmp_path / "A01T.mat")
    assert (tmp_path / "A01T.mat").read_bytes() == CONTENT
    assert Server.asked[0] == 0 and 0 < Server.asked[1] <= 700_000
    assert [p.name for p in tmp_path.iterdir()] == ["A01T.mat"]


def test_the_second_address_is_tried_and_what_is_there_is_not_fetched(address, tmp_path):
    download([address + "missing/A01T.mat", address + "A01T.mat"], tmp_path / "A01T.mat")
    assert (tmp_path / "A01T.mat").read_bytes() == CONTENT
    asked = len(Server.asked)
    download([address + "A01T.mat"], tmp_path / "A01T.mat")
    assert len(Server.asked) == asked


def test_a_part_of_the_whole_file_is_taken_as_it_is_or_fetched_anew(address, tmp_path):
    (tmp_path / "A01T.mat.part").write_bytes(CONTENT[:500])
    download([address + "A01T.mat"], tmp_path / "A01T.mat")
    assert (tmp_path / "A01T.mat").read_bytes() == CONTENT and Server.asked == [500]


def test_an_unreachable_file_is_one_line(address, tmp_path):
    with pytest.raises(UserError, match="could not download A09E.mat.*404|HTTPError"):
        download([address + "missing/A09E.mat"], tmp_path / "A09E.mat", attempts=1)
    assert not (tmp_path / "A09E.mat").exists()
