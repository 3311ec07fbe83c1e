"""Downloads from a local server that may break off, may support ranges, or may send other content."""

import hashlib
import re
import shutil
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from defectdiffu import InputError
from defectdiffu.data.download import ATTEMPTS, fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """content: the file it serves; breaks: bytes after which each connection ends; ranges: whether it supports them."""

    content, breaks, ranges, status = CONTENT, None, True, 200

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_port}/set.tar"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, content, wanted = self.server, self.server.content, self.headers.get("Range")
        server.asked.append(wanted)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if server.status != 200 or (start and start >= len(content)):
            self.send_response(server.status if server.status != 200 else 416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: server.breaks])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def refusal(*arguments):
    with pytest.raises(InputError) as caught:
        fetch(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_arrives_whole(server, tmp_path):
    path = fetch(server.url, tmp_path / "new" / "set.tar", SHA256)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["set.tar"]


def test_a_connection_that_breaks_off_is_taken_up_again(server, tmp_path):
    server.breaks = 100_000
    assert fetch(server.url, tmp_path / "set.tar", SHA256).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]


def test_a_killed_download_goes_on_where_it_was(server, tmp_path):
    (tmp_path / "set.tar.part").write_bytes(CONTENT[:250_000])
    assert fetch(server.url, tmp_path / "set.tar", SHA256).read_bytes() == CONTENT
    assert server.asked == ["bytes=250000-"]


def test_a_part_that_is_complete_is_only_checked(server, tmp_path):
    (tmp_path / "set.tar.part").write_bytes(CONTENT)
    assert fetch(server.url, tmp_path / "set.tar", SHA256).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_fetched_anew(server, tmp_path):
    (tmp_path / "set.tar.part").write_bytes(CONTENT + b"junk")
    assert fetch(server.url, tmp_path / "set.tar", SHA256).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "set.tar.part").write_bytes(b"x" * 1000)
    assert fetch(server.url, tmp_path / "set.tar", SHA256).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_leaves_nothing(server, tmp_path):
    server.content = CONTENT[:-1] + b"?"
    assert f"expected {SHA256}" in refusal(server.url, tmp_path / "set.tar", SHA256)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_checked_not_fetched(server, tmp_path):
    (tmp_path / "set.tar").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "set.tar", SHA256)
    (tmp_path / "set.tar").write_bytes(b"another")
    assert "set.tar has SHA-256" in refusal(server.url, tmp_path / "set.tar", SHA256)
    assert server.asked == []
    assert (tmp_path / "set.tar").read_bytes() == b"another"


def test_a_connection_that_brings_nothing_is_given_up_and_the_part_stays(server, tmp_path):
    server.breaks = 0
    (tmp_path / "set.tar.part").write_bytes(CONTENT[:70_000])
    assert "the same command resumes from there" in refusal(server.url, tmp_path / "set.tar", SHA256)
    assert (tmp_path / "set.tar.part").read_bytes() == CONTENT[:70_000]
    assert len(server.asked) == ATTEMPTS


def test_a_file_that_has_moved_is_said_at_once(server, tmp_path):
    server.status = 404
    assert "answers 404" in refusal(server.url, tmp_path / "set.tar", SHA256)
    assert len(server.asked) == 1


def test_no_server_is_one_line(tmp_path):
    assert "http://127.0.0.1:9" in refusal("http://127.0.0.1:9/set.tar", tmp_path / "set.tar", SHA256)


def test_a_disk_without_room_is_not_filled(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1e12, 1e12, 200_100_000))
    assert "not enough disk space" in refusal(server.url, tmp_path / "set.tar", SHA256)
    assert not (tmp_path / "set.tar").exists()
    assert (tmp_path / "set.tar.part").stat().st_size == 0


@pytest.mark.parametrize("sha256", ["", "abc", "g" * 64])
def test_what_is_no_checksum_is_refused(tmp_path, sha256):
    assert "64 hexadecimal digits" in refusal("https://example.com/set.tar", tmp_path / "set.tar", sha256)


def test_files_of_this_machine_are_no_download(tmp_path):
    assert "must begin with https://" in refusal("file:///etc/passwd", tmp_path / "set.tar", SHA256)
