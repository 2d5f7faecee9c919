"""Masks as the shard format stores them: numbered segment maps, and layers of packed instances."""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypedDict

import cv2
import numpy as np

from shards.doctor import Doctor, Reject
from shards.format.schema import check_fits, map_type

_MAX_DIGITS = 7  # characters of a compressed run length, 5 bits each: 35 bits


class Rle(TypedDict):
    """A mask `[H, W]` in COCO's compressed form; its run lengths go down the columns."""

    size: list[int]  # height, width
    counts: str | bytes


def check_area(name: str, declared: float, pixels: int, doctor: Doctor) -> None:
    """Note a mask that has no pixels or another size than its annotation declares.

    The polygons and crowds of the publishers differ slightly from their pixels. A difference is
    noted if it exceeds 16 pixels and a quarter of the larger number.
    """
    if not pixels:
        doctor.note(15, f"{name} has no pixel")
    elif abs(declared - pixels) > max(16, declared / 4, pixels / 4):
        doctor.note(12, f"{name} declares {declared} pixels and has {pixels}")


def number_segments(ids: np.ndarray, segment_ids: Sequence[Any]) -> tuple[np.ndarray, list[int]]:
    """Replace the publisher's ids in a panoptic map by the positions of their segments.

    Args:
        ids: The publisher's ids, `uint32 [H, W]`; 0 is void.
        segment_ids: The id of every segment in the order of its annotation.

    Returns:
        The map `uint8 [H, W]` (`uint16` if there are over 255 segments), in which n marks the n-th
        segment counted from 1 and 0 is void, and the number of pixels of every segment.

    Raises:
        Reject: The nonzero ids of the map are not exactly `segment_ids`, or are too many.
    """
    if repeated := [i for i, count in Counter(segment_ids).items() if count > 1]:
        raise Reject(11, f"id {repeated[0]} occurs more than once in the JSON")
    if invalid := [i for i in segment_ids if not (isinstance(i, int) and 0 < i < 1 << 24)]:
        raise Reject(11, f"id {invalid[0]} is in the JSON, but a PNG holds ids from 1 to 16777215")
    # Neighboring pixels mostly share an id, so the work is done once per run of equal ids instead
    # of once per pixel: look up the runs in a table, then repeat the results.
    flat = ids.ravel()
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    lengths = np.diff(starts, append=flat.size)
    table = _empty_table(map_type(len(segment_ids)))
    table[segment_ids] = range(1, len(segment_ids) + 1)
    numbers = table[flat[starts]]
    table[segment_ids] = 0
    unlisted = np.flatnonzero((numbers == 0) & (flat[starts] != 0))
    if unlisted.size:
        raise Reject(10, f"id {flat[starts[unlisted[0]]]} is in the PNG but not in the JSON")
    counts = np.bincount(numbers, lengths, minlength=len(segment_ids) + 1)
    areas = counts[1:].astype(int).tolist()
    if 0 in areas:
        raise Reject(11, f"id {segment_ids[areas.index(0)]} is in the JSON but not in the PNG")
    return np.repeat(numbers, lengths).reshape(ids.shape), areas


@functools.cache
def _empty_table(dtype: type[np.unsignedinteger]) -> np.ndarray:
    """Return a table with one entry for every 24-bit id; callers reset what they set to 0.

    The system provides memory only for the pages that are written, so the 16 or 32 MiB are virtual.
    """
    return np.zeros(1 << 24, dtype)


def decode_runs(counts: bytes) -> np.ndarray:
    """Decode compressed run lengths that may be malformed; return [-1] if they are.

    pycocotools decodes them without any check and can read past the end of the string.
    """
    bits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(bits) or bits[-1] & 32 or bits.min() < 0 or bits.max() > 63:
        return np.array([-1])
    lengths = np.diff(np.flatnonzero(bits & 32 == 0), prepend=-1)
    return np.array([-1]) if lengths.max() > _MAX_DIGITS else _runs([counts])[0]


def _runs(all_counts: Sequence[bytes]) -> list[np.ndarray]:
    """Decode the compressed run lengths of several masks in one pass.

    Args:
        all_counts: The `counts` of every mask in COCO's compressed form.

    Returns:
        The run lengths of every mask, `int64 [n]`: outside, inside, outside, ... the mask.
    """
    # A character is 48 + 6 bits. The lower five are a digit in base 32, least significant first;
    # bit 32 says that another digit of the same number follows, and bit 16 of the last digit is
    # the sign. All digits of all masks are decoded together: shift each one to its weight, then
    # sum per number.
    bits = np.frombuffer(b"".join(all_counts), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(bits & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, ends + 1 - starts))
    numbers = np.add.reduceat((bits & 31) << shifts, starts)
    # The sign bit has the weight -2^k in two's complement, and it was added as +2^k.
    numbers -= (bits[ends] & 16) << shifts[ends] + 1
    firsts = np.searchsorted(starts, np.cumsum([len(counts) for counts in all_counts[:-1]]))
    masks = np.split(numbers, firsts)
    # From the fourth on, a number is the difference to the run two before it. Runs 1, 3, 5, ... and
    # 2, 4, 6, ... are therefore two running sums; run 0 stands alone.
    for runs in masks:
        runs[1::2] = np.cumsum(runs[1::2])
        runs[2::2] = np.cumsum(runs[2::2])
    return masks


def pack(
    rles: Sequence[Rle], order: Sequence[int], height: int, width: int
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Put masks that may overlap into few label maps.

    Each mask goes into the first layer in which it overlaps no earlier mask.

    Args:
        rles: The masks as compressed RLEs.
        order: The order in which to put them, as positions in `rles`.
        height: The image's height in pixels.
        width: The image's width in pixels.

    Returns:
        The layers `uint8 [n, H, W]` with n >= 1 (`uint16` if a layer has over 255 masks), and the
        (layer, value) of every mask: the mask is `layers[layer] == value`.

    Raises:
        Reject: The layers have too many pixels or masks to be read again.
    """
    # Run lengths go down the columns, so the layers are [W, H] until the end. A mask is then a
    # block of whole columns (`_columns`), and only these columns of a layer are touched. The bits
    # of the block are all ones inside the mask: `&` with a layer finds an overlap, and `&` with a
    # number turns the block into values. For 678 instances of COCO this takes a sixth of the time
    # of decoding every mask to the size of its image with pycocotools.
    dtype = map_type(len(rles))
    layers = [np.zeros((width, height), dtype)]
    counts = [0]
    positions = [(0, 0)] * len(rles)
    all_counts = [rle["counts"] for rle in rles]
    runs = _runs([c.encode() if isinstance(c, str) else c for c in all_counts]) if rles else []
    for i in order:
        left, mask = _columns(runs[i], height, dtype)
        box = np.s_[left : left + len(mask)]
        # numpy computes the maximum of small integers faster than any()
        free = (n for n, layer in enumerate(layers) if not (layer[box] & mask).max(initial=0))
        n = next(free, len(layers))
        if n == len(layers):
            check_fits(width, height * (n + 1))
            layers.append(np.zeros((width, height), dtype))
            counts.append(0)
        counts[n] += 1
        layers[n][box] |= mask & dtype(counts[n])
        positions[i] = n, counts[n]
    rows = np.empty((len(layers), height, width), dtype)
    for layer, transposed in zip(layers, rows, strict=True):
        cv2.transpose(layer, transposed)  # numpy's copy of a transposed view takes 7 times as long
    return rows.astype(map_type(max(counts)), copy=False), positions


def _columns(runs: np.ndarray, height: int, dtype: type) -> tuple[int, np.ndarray]:
    """Draw a mask in the columns that it covers.

    Args:
        runs: The run lengths, `int64 [n]`: outside, inside, outside, ... down the columns.
        height: The image's height in pixels.
        dtype: An unsigned integer type.

    Returns:
        The first column that has a pixel of the mask, and `dtype [w, H]`, the columns from there to
        the last one that has a pixel: all bits set inside the mask, none outside.
    """
    # `ends` are the ends of the runs as positions in the image, counted down the columns. Shift
    # and clip them to the covered columns: runs outside get the length 0, and the rest is one
    # np.repeat over w * H instead of W * H pixels.
    ends = np.cumsum(runs)
    left, right = ends[0] // height, -(-ends[1::2].max(initial=ends[0]) // height)
    kept = np.diff((ends - left * height).clip(0, (right - left) * height), prepend=0)
    values = np.zeros(len(kept), dtype)
    values[1::2] = np.iinfo(dtype).max
    return left, np.repeat(values, kept).reshape(-1, height)
