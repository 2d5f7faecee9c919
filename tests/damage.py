"""Damage to files."""

from pathlib import Path


def flip(path: Path, offset: int, bits: int = 0x10) -> None:
    """Flip bits of the byte at `offset`."""
    blob = bytearray(path.read_bytes())
    blob[offset] ^= bits
    path.write_bytes(blob)
