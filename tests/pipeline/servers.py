"""An HTTP server of a folder that misbehaves as it is told, and an S3 server that does not."""

import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem


class Server(ThreadingHTTPServer):
    """Serves `folder`. `faults` says for a file's name what goes wrong with it, and how often.

    drop: the connection ends half-way. stall: nothing more comes half-way. short: half the bytes,
    said to be all. refuse: status 503. whole: the whole file whatever part was asked for. hold:
    what is longer than `patience` bytes waits for `released`.
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

    def do_GET(self):
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        self.server.asked[path.name] += 1
        fault = self.server.faults.get(path.name, "")
        if self.server.asked[path.name] > self.server.times.get(path.name, float("inf")):
            fault = ""
        body, status = path.read_bytes(), 200
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
        self.end_headers()
        if fault not in ("drop", "stall", "short"):
            self.wfile.write(body)
            return
        self.wfile.write(half)
        if fault == "stall":
            self.server.released.wait(60)
        if fault != "short":
            self.close_connection = True

    def log_message(self, *_):
        """Keep quiet."""


@contextmanager
def serving(folder: Path):
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


@contextmanager
def s3(monkeypatch, bucket: str):
    """A client of an S3 server that the environment points at, with one bucket."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    moto = ThreadedMotoServer(port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    S3FileSystem.clear_instance_cache()
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket=bucket)
        yield client
    finally:
        moto.stop()
        S3FileSystem.clear_instance_cache()
