"""An HTTP server of a folder that misbehaves on request, and an S3 server that does not."""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import boto3
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from shards.remote import RetryPolicy

IMPATIENT = RetryPolicy(tries=5, first_pause_s=0.01, timeout_s=0.5)


class Server(ThreadingHTTPServer):
    """An HTTP server of `folder`, with a page of links per folder, that accepts uploads by POST.

    Attributes:
        faults: For the name of a file or folder, what goes wrong with it. drop: the connection
            ends halfway. stall: nothing more is sent, or read, after half of the bytes. short: half
            the bytes, as if they were all. refuse: status 503. whole: the whole file, whatever part
            was requested. hold: a body of more than `patience` bytes waits for `released`.
        times: For a name, the number of requests with the fault. Default: all.
        asked: For a name, the number of requests.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server_port}"
        self.faults: dict[str, str] = {}
        self.times: dict[str, float] = {}
        self.asked: Counter[str] = Counter()
        self.patience = 0
        self.released = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        path = self.server.folder / unquote(self.path).lstrip("/")
        if not path.exists():
            self.send_error(404)
            return
        fault = self._fault(path.name)
        body, status = path.read_bytes() if path.is_file() else _links(path), 200
        if (part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))) and (
            fault != "whole"
        ):
            body, status = body[int(part[1]) : int(part[2]) + 1], 206
        if fault == "refuse":
            self.send_error(503)
            return
        if fault == "hold" and len(body) > self.server.patience:
            self.server.released.wait(60)
        half = body[: len(body) // 2]
        self.send_response(status)
        self.send_header("Content-Length", str(len(half if fault == "short" else body)))
        if path.is_dir():
            self.send_header("Content-Type", "text/html")
        self.end_headers()
        if fault not in ("drop", "stall", "short"):
            self.wfile.write(body)
            return
        self.wfile.write(half)
        if fault == "stall":
            self.server.released.wait(60)
        if fault != "short":
            self.close_connection = True

    def do_POST(self) -> None:
        path = self.server.folder / unquote(self.path).lstrip("/")
        fault, blob = self._fault(path.name), b""
        while size := int(self.rfile.readline(), 16):  # the chunked transfer encoding
            blob += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        if fault == "stall":
            self.server.released.wait(60)
        if fault in ("drop", "stall"):
            self.close_connection = True
            return
        if fault != "refuse":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blob[: len(blob) // 2] if fault == "short" else blob)
        self.send_response(503 if fault == "refuse" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _fault(self, name: str) -> str:
        """Count a request and return what goes wrong with it."""
        self.server.asked[name] += 1
        if self.server.asked[name] > self.server.times.get(name, float("inf")):
            return ""
        return self.server.faults.get(name, "")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def _links(folder: Path) -> bytes:
    names = (f"{path.name}/" if path.is_dir() else path.name for path in sorted(folder.iterdir()))
    return "".join(f'<a href="{name}">{name}</a>' for name in names).encode()


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A running server of `folder`."""
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


class S3Server:
    """An S3 server of this process, which keeps what it holds while it does not listen.

    Args:
        address: Where it listens.

    Attributes:
        client: A client of the server.
    """

    def __init__(self, address: str) -> None:
        self._address, self._port = address, 0
        self._server = ThreadedMotoServer(ip_address=address, port=0)
        self.client: Any = None

    def start(self) -> None:
        """Listen, at the port of before."""
        self._server = ThreadedMotoServer(ip_address=self._address, port=self._port, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()

    def stop(self) -> None:
        """Listen no more, so that every request is refused."""
        self._server.stop()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://{self._address}:{self._port}"

    def read(self, name: str) -> bytes:
        """Return an object; b"" if it is missing."""
        bucket, _, key = name.partition("/")
        try:
            return self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return b""

    def names(self, bucket: str) -> list[str]:
        """Return the names of all objects."""
        listed = self.client.list_objects_v2(Bucket=bucket)
        return [f"{bucket}/{entry['Key']}" for entry in listed.get("Contents", [])]


@contextmanager
def s3_server(
    monkeypatch: pytest.MonkeyPatch,
    bucket: str,
    secret: str = "testing",
    address: str = "127.0.0.1",
) -> Iterator[S3Server]:
    """An S3 server that the environment points to, with one bucket."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = S3Server(address)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    S3FileSystem.clear_instance_cache()
    try:
        server.client = boto3.client("s3")
        server.client.create_bucket(Bucket=bucket)
        yield server
    finally:
        server.stop()
        S3FileSystem.clear_instance_cache()


@contextmanager
def s3(monkeypatch: pytest.MonkeyPatch, bucket: str) -> Iterator:
    """A client of an S3 server that the environment points to, with one bucket."""
    with s3_server(monkeypatch, bucket) as server:
        yield server.client
