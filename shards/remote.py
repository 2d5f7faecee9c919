"""Files below a URL, through fsspec: one client, one retry policy, one time limit per request."""

import contextlib
import errno
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import fsspec
from fsspec.asyn import sync

from shards.errors import Failed, UsageError
from shards.file_info import FileInfo, changed
from shards.files import whole_file

PIECE_BYTES = 8 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request is repeated, and how long it may take.

    Attributes:
        tries: Number of requests before the client gives up.
        first_pause_s: Pause before the second request. It doubles from try to try, and a
            random factor of 0.5 to 1.5 keeps many processes from asking again at the same time.
        timeout_s: Time limit of a request, per PIECE_BYTES that it moves.
    """

    tries: int = 5
    first_pause_s: float = 0.5
    timeout_s: float = 60

    def pause(self, failures: int) -> None:
        """Sleep before the next request, after this number of failed ones."""
        time.sleep(self.first_pause_s * 2 ** (failures - 1) * random.uniform(0.5, 1.5))

    def limit(self, size: int) -> float:
        """Return the time limit of a request that moves `size` bytes."""
        return self.timeout_s * max(1, -(-size // PIECE_BYTES))


DEFAULT_POLICY = RetryPolicy()


class RemoteFolder:
    """The files below a URL: http(s), s3, gs, or any other protocol of fsspec.

    Credentials and endpoints come from fsspec (AWS_*, FSSPEC_*). A server that drops the
    connection, stalls, or sends too few bytes is asked again as the policy says; after the last try
    every method raises Failed. fsspec enforces the time limit for the protocols that it implements
    asynchronously (http, s3, gs, abfs); the others (file, memory, sftp) keep their own limits.

    Args:
        url: The folder.
        policy: Retries and time limit. Default: DEFAULT_POLICY.

    Attributes:
        ranges: Whether the server answers a request for a part of a file with that part. It
            becomes False after the first answer with the whole file.

    Raises:
        UsageError: No installed library supports the protocol.
    """

    def __init__(self, url: str, policy: RetryPolicy | None = None):
        self.url = url.rstrip("/")
        self.policy = policy or DEFAULT_POLICY
        self.ranges = True
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UsageError(str(error), where=url) from error
        self._root = root.rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFolder, (self.url, self.policy)  # sockets cannot be pickled

    def files(self) -> dict[str, int | None]:
        """Return the name, relative to the URL, and the size of every file below it."""
        return {name: info.bytes for name, info in self.infos().items()}

    def infos(self) -> dict[str, FileInfo]:
        """Return the name, relative to the URL, and the description of every file below it."""

        def find() -> dict[str, FileInfo]:
            found = self._call("find", self._root, detail=True)
            return {
                path[len(self._root) + 1 :]: FileInfo(info["size"], changed(info))
                for path, info in found.items()
            }

        try:
            return self._retry("", find)
        except FileNotFoundError:
            return {}

    def info(self, name: str) -> FileInfo | None:
        """Return the size and the time of the last change of a file, or None if it is missing."""
        try:
            info = self._retry(name, lambda: self._call("info", self._path(name)))
        except FileNotFoundError:
            return None
        return FileInfo(info["size"], changed(info))

    def read(self, name: str) -> bytes:
        """Return a small file, such as a manifest.

        Raises:
            FileNotFoundError: It is missing.
        """
        return self._retry(name, lambda: self._call("cat_file", self._path(name)))

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes of a file, from byte `offset` on.

        Raises:
            FileNotFoundError: The file is missing.
        """

        def part() -> bytes:
            end = offset + length
            path, size = self._path(name), length if self.ranges else end
            blob = self._call("cat_file", path, size=size, start=offset, end=end)
            if len(blob) > length:
                self.ranges = False
                blob = blob[offset:end]
            if len(blob) != length:
                raise OSError(f"{len(blob)} of {length} bytes arrived")
            return blob

        return self._retry(name, part)

    def pieces(self, name: str, length: int) -> Iterator[bytes]:
        """Yield a file of `length` bytes in order, PIECE_BYTES at a time.

        Raises:
            FileNotFoundError: The file is missing.
        """
        offset = 0
        while offset < length:
            size = min(PIECE_BYTES, length - offset) if self.ranges else length - offset
            yield self.read_range(name, offset, size)
            offset += size

    def fetch(self, name: str, path: Path) -> bool:
        """Download a file to `path`, in pieces if the server gives its size and answers ranges.

        Returns:
            Whether the file exists. If it does not, `path` is removed.
        """
        path.unlink(missing_ok=True)
        info = self.info(name)
        try:
            # Without a size, read it whole: fsspec's `info` reports every HTTP error as a missing
            # file, and only `read` tells a refusal (Failed) from a missing file.
            size = info.bytes if info else None
            pieces = iter([self.read(name)]) if size is None else self.pieces(name, size)
            with whole_file(path) as file:
                file.writelines(pieces)
        except FileNotFoundError:
            return False
        return True

    def send(self, path: Path, name: str) -> None:
        """Upload the file at `path` as `name`, and check the size that the server reports.

        Raises:
            UsageError: The bucket is missing, or the protocol cannot write.
        """
        size, target = path.stat().st_size, self._path(name)

        def put() -> None:
            self._call("put_file", str(path), target, size=size)
            self._fs.invalidate_cache()
            arrived = self._call("info", target)["size"]
            if arrived != size:
                raise OSError(f"{arrived} of {size} bytes arrived")

        self._put(name, put)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, or replace it.

        Raises:
            UsageError: The bucket is missing, or the protocol cannot write.
        """
        self._put(name, lambda: self._call("pipe_file", self._path(name), content))

    def create(self, name: str, content: bytes) -> bool:
        """Write a small file unless it exists, in one step if the server can.

        Returns:
            Whether this call wrote the file. A server that cannot tell may let two callers write.

        Raises:
            UsageError: The bucket is missing, or the protocol cannot write.
        """

        def put() -> bool:
            try:
                self._call("pipe_file", self._path(name), content, mode="create")
            except FileExistsError:
                return self._call("cat_file", self._path(name)) == content  # of a try before
            except OSError as error:
                if error.errno in FULL:  # a local file system has created an empty file
                    self._call("rm_file", self._path(name))
                raise
            return True

        return self._put(name, put)

    def _put(self, name: str, put: Callable[[], T]) -> T:
        """Call `put`, which writes a file, as often as the policy says."""

        def request() -> T:
            if not self._fs.async_impl:  # an object store has no folders to create
                self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            return put()

        try:
            return self._retry(name, request)
        except FileNotFoundError as error:
            raise UsageError(
                "the server has no such bucket or folder", where=self._where(name), fix="create it"
            ) from error

    def remove(self, name: str) -> None:
        """Remove a file, if it exists.

        Raises:
            UsageError: The protocol cannot remove files.
        """
        with contextlib.suppress(FileNotFoundError):
            self._retry(name, lambda: self._call("rm_file", self._path(name)))

    def _path(self, name: str) -> str:
        if self.url.startswith(("http:", "https:")):
            name = quote(name)  # the name of a tar may contain "#" or "?"
        return f"{self._root}/{name}"

    def _where(self, name: str) -> str:
        return f"{self.url}/{name}".rstrip("/")

    def _call(self, method: str, *args: Any, size: int = 0, **options: Any) -> Any:
        """Call a method of the file system once, within the time limit for `size` bytes."""
        if not self._fs.async_impl:
            return getattr(self._fs, method)(*args, **options)
        # The synchronous methods of fsspec accept no time limit; their coroutines do.
        coroutine, limit = getattr(self._fs, f"_{method}"), self.policy.limit(size)
        return sync(self._fs.loop, coroutine, *args, timeout=limit, **options)

    def _retry(self, name: str, request: Callable[[], T]) -> T:
        """Return what a request returns, and repeat it as the policy says if it fails."""
        last: Exception | None = None
        for failures in range(self.policy.tries):
            if failures:
                self.policy.pause(failures)
            self._fs.invalidate_cache()  # otherwise a cached listing hides changes
            try:
                return request()
            except FileNotFoundError as error:
                raise FileNotFoundError(self._where(name)) from error
            except NotImplementedError as error:
                raise UsageError(
                    "files cannot be written or removed by this protocol",
                    where=self._where(name),
                    fix="give a folder, or a URL of an object store such as s3://BUCKET/FOLDER",
                ) from error
            except Exception as error:  # every file system raises exceptions of its own
                last = error
                if isinstance(error, OSError) and error.errno in FULL:
                    break
        if isinstance(last, PermissionError) or "Credentials" in type(last).__name__:  # of botocore
            raise UsageError(
                f"access is refused ({last})",
                where=self._where(name),
                fix="give this machine credentials that may read and write there",
            ) from last
        if isinstance(last, OSError) and last.errno in FULL:
            fix = "free space and run the same command to resume"
            raise Failed("the disk is full", where=self._where(name), fix=fix) from last
        timeout = "no answer within the time limit"
        reason = timeout if isinstance(last, TimeoutError) else repr(last)
        raise Failed(
            f"{self.policy.tries} tries failed, the last one with: {reason}",
            where=self._where(name),
            fix="check that this machine can reach the server and has the rights to use it, and "
            "run the same command to resume",
        ) from last
