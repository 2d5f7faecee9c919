"""Connections between hosts, without torch: they name the direction that is blocked."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

CONNECT_S = 4
THREADS = 32


def serve(address: str) -> int:
    """Accept connections at an address of this host in a thread, and return the port."""
    server = socket.create_server((address, 0), family=_family(address))

    def accept() -> None:
        while True:
            connection, _ = server.accept()
            connection.sendall(b"ok")
            connection.close()

    threading.Thread(target=accept, daemon=True).start()
    return server.getsockname()[1]


def free_port(address: str) -> int:
    """Return a port that nothing uses at an address of this host."""
    with socket.create_server((address, 0), family=_family(address)) as server:
        return server.getsockname()[1]


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def reach(servers: dict[str, tuple[str, int]]) -> dict[str, str]:
    """Connect to the servers of other hosts, and return the reasons of those that did not answer.

    Args:
        servers: Address and port by host.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        reasons = threads.map(_connect, servers.values())
        return {host: reason for host, reason in zip(servers, reasons, strict=True) if reason}


def _connect(server: tuple[str, int]) -> str:
    """Return why a server does not answer; "" if it does."""
    try:
        with socket.create_connection(server, CONNECT_S) as connection:
            connection.settimeout(CONNECT_S)
            return "" if connection.recv(2) == b"ok" else "the connection was closed"
    except OSError as error:
        return error.strerror or str(error)
