"""A hostile package index: what it sends is checked before it is used, and nothing of it is left."""

import hashlib
import logging
import sys
import threading
import traceback
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from pipeline.kept import Kept
from pruneonce.errors import SourceError
from pruneonce.sources import fetch

NAME = "pruneonce_fixture-1.0-py3-none-any.whl"
MEMBERS = {"t.txt": "pkg/data.txt"}
PAGE = "/simple/pruneonce-fixture/"


def wheel(path: Path, content: str) -> bytes:
    info = "pruneonce_fixture-1.0.dist-info"
    files = {
        "pkg/data.txt": content,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: pruneonce-fixture\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return path.read_bytes()


@pytest.fixture
def index(monkeypatch) -> Iterator[dict[str, tuple[int, dict[str, str], bytes]]]:
    """A package index on loopback: path -> status, headers, body."""
    answers: dict[str, tuple[int, dict[str, str], bytes]] = {}

    class Serve(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answers.get(self.path.partition("#")[0], (404, {}, b""))
            self.send_response(status)
            for header in {"Content-Type": "text/html", "Content-Length": str(len(body)), **headers}.items():
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in {
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_RETRIES": "0",
            "PIP_NO_INDEX": "",
            "PIP_FIND_LINKS": "",
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_INDEX_URL": f"http://me:s3cr3t@127.0.0.1:{server.server_port}/simple",
            "no_proxy": "127.0.0.1",
        }.items():
            monkeypatch.setenv(name, value)
        yield answers
        server.shutdown()


def page(link: str, digest: str = "") -> tuple[int, dict[str, str], bytes]:
    return 200, {}, f'<a href="{link}{digest and "#sha256=" + digest}">{NAME}</a>'.encode()


WAYS = (
    "another file",
    "a digest of its own",
    "a redirect to a file",
    "a link to a file",
    "an endless redirect",
    "a cut file",
)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_hostile_index_sends_is_not_used(index, tmp_path, way):
    good, evil = wheel(tmp_path / NAME, "good"), wheel(tmp_path / f"evil-{NAME}", "evil")
    pinned, file = hashlib.sha256(good).hexdigest(), f"/files/{NAME}"
    (tmp_path / "evil").mkdir()
    local = (tmp_path / f"evil-{NAME}").rename(tmp_path / "evil" / NAME).as_uri()
    index.update(
        {
            "another file": {PAGE: page(file), file: (200, {}, evil)},
            "a digest of its own": {PAGE: page(file, hashlib.sha256(evil).hexdigest()), file: (200, {}, evil)},
            "a redirect to a file": {PAGE: page(file), file: (302, {"Location": local}, b"")},
            "a link to a file": {PAGE: page(local)},
            "an endless redirect": {PAGE: page(file), file: (302, {"Location": file}, b"")},
            "a cut file": {PAGE: page(file), file: (200, {}, good[:-9])},
        }[way]
    )
    with pytest.raises(SourceError, match=r"^expected [^\n]*, found[^\n]*$") as caught:
        fetch.fetch_package("pruneonce-fixture==1.0", pinned, MEMBERS, tmp_path / "out", keep=Kept(tmp_path / "scratch"))
    assert not (tmp_path / "out").exists()
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.suffix == ".whl"] == []
    assert "s3cr3t" not in str(caught.value)


def test_the_pinned_file_is_used(index, tmp_path):
    """The same index, so that the cases above fail for no other reason."""
    good, file = wheel(tmp_path / NAME, "good"), f"/files/{NAME}"
    index.update({PAGE: page(file), file: (200, {}, good)})
    pinned = hashlib.sha256(good).hexdigest()
    fetch.fetch_package("pruneonce-fixture==1.0", pinned, MEMBERS, tmp_path / "out", keep=Kept(tmp_path / "scratch"))
    assert (tmp_path / "out/t.txt").read_text() == "good"


def test_what_the_hubs_library_prints_has_no_password(tmp_path, monkeypatch, capfd):
    """It warns of each try, and its error is the cause of ours."""
    address = "http://me:s3cr3t@127.0.0.1:9/api"

    def fail(*_: object, **__: object) -> None:
        handler.setStream(sys.stderr)  # pytest's, in this test
        huggingface_hub.logging.get_logger("huggingface_hub.utils._http").warning("thrown while requesting GET %s", address)
        raise OSError(f"no answer of {address}")

    (handler,) = logging.getLogger("huggingface_hub").handlers
    monkeypatch.setattr(handler, "stream", handler.stream)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SourceError, match=r"found: no answer of http://127\.0\.0\.1:9/api") as caught:
        fetch.fetch_model("a/b", "0" * 40, tmp_path / "out", keep=Kept(tmp_path / "scratch"))
    said = "".join(traceback.format_exception(caught.value)) + capfd.readouterr().err
    assert "requesting GET http://127.0.0.1:9/api" in said
    assert "s3cr3t" not in said
