"""A plan as a table for people."""

import textwrap
from collections.abc import Iterator
from typing import Any

from jobs.cluster.judge import size

Found = dict[str, Any]
WIDTH, LABEL = 100, 15
PARTS = {"pixel_decoder": "pixel decoder", "masked_decoder": "decoder"}


def table(found: Found) -> str:
    """Return the lines of a plan: a label, and a text that is wrapped beside it."""
    lines = [f"plan of {found['preset']} on this machine ({_machine(found['machine'])})", ""]
    for label, text in _rows(found):
        lines += textwrap.wrap(
            text,
            WIDTH,
            initial_indent=label.ljust(LABEL),
            subsequent_indent=" " * LABEL,
            break_on_hyphens=False,
            break_long_words=False,
        )
    return "\n".join(lines)


def _rows(found: Found) -> Iterator[tuple[str, str]]:
    yield "network", _network(found["network"])
    yield "batch", _batch(found)
    yield "data", _data(found["data"], found["network"]["classes"])
    yield "checkpoints", _checkpoints(found["checkpoint"])
    yield "learning rate", found["learning_rate"]["advice"]


def _machine(machine: Found) -> str:
    gpus = f"{machine['gpus']} x {machine['gpu']}" if machine["gpus"] else "no GPU"
    return f"{machine['cores']} cores, {size(machine['memory_bytes'])}, {gpus}"


def _network(network: Found) -> str:
    def counts(parts: dict[str, int]) -> str:
        return ", ".join(f"{PARTS.get(name, name)} {_millions(n)}" for name, n in parts.items())

    frozen = f"; frozen: {counts(network['frozen'])}" if network["frozen"] else ""
    total = _millions(network["parameters"])
    return f"{total} parameters; trained: {counts(network['trainable'])}{frozen}"


def _batch(found: Found) -> str:
    batch, height, width = found["batch"], *found["batch"]["crop"]
    sizes = batch["micro_batches"]
    largest = f"{max(sizes)} image{'s' * (max(sizes) > 1)}"
    workers = f"{batch['workers']} worker{'s' * (batch['workers'] > 1)}"
    return (
        f"{batch['size']} images of {height}x{width} pixels per step; {workers} "
        f"{'with a GPU' if batch['gpu'] else 'without a GPU'}; each takes {len(sizes)} "
        f"micro-batch{'es' * (len(sizes) > 1)} of {'' if len(set(sizes)) == 1 else 'at most '}"
        f"{largest}"
    )


def _data(data: Found, classes: int) -> str:
    if reason := data.get("missing"):
        return f"{reason}; the order is not drawn, and {classes} classes are assumed"
    return (
        f"{data['images']} images in {data['shards']} shards "
        f"({data['shards_per_worker']:.3g} per worker); {data['epochs']:.3g} epochs; the order "
        f"starts with {data['first_sample']}"
    )


def _checkpoints(found: Found) -> str:
    text = (
        f"{size(found['bytes'])} each; up to {found['count']} of them take "
        f"{size(found['total_bytes'])} of {found['runs']}"
    )
    if found["free_bytes"] is None:
        return text
    lacks = ", WHICH IS TOO LITTLE" if found["free_bytes"] < found["total_bytes"] else ""
    return f"{text}, where {size(found['free_bytes'])} are free{lacks}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count}"
