"""A plan as a table for people."""

import textwrap
from collections.abc import Iterator
from typing import Any

from jobs.cluster.judge import size
from jobs.frame import duration

Found = dict[str, Any]
WIDTH, LABEL = 100, 15
SHARES = {"data": "waiting for data", "network": "the network", "update": "the optimizer"}
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
    if "speed" in found:
        yield "memory", _memory(found)
        yield from _speed(found["speed"])
        yield "would change", _changes(found["changes"])


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
    auto = "; batch.micro=auto is measured when the run starts" if batch["is_auto"] else ""
    largest = f"{max(sizes)} image{'s' * (max(sizes) > 1)}"
    workers = f"{batch['workers']} worker{'s' * (batch['workers'] > 1)}"
    return (
        f"{batch['size']} images of {height}x{width} pixels per step; {workers} "
        f"{'with a GPU' if batch['gpu'] else 'without a GPU'}; each takes {len(sizes)} "
        f"micro-batch{'es' * (len(sizes) > 1)} of {'' if len(set(sizes)) == 1 else 'at most '}"
        f"{largest}{auto}"
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


def _memory(found: Found) -> str:
    memory, of = found["memory"], "its GPU" if found["batch"]["gpu"] else "its process"
    if memory["is_measured"]:
        return f"{size(memory['bytes'])} of {of} per worker, at most (measured)"
    text = f"about {size(memory['bytes'])} of {of} per worker (an estimate, not measured)"
    return f"{text}; a step does not fit this machine" if memory["fits"] is False else text


def _speed(speed: Found) -> Iterator[tuple[str, str]]:
    if reason := speed.get("missing"):
        yield "speed", f"not measured on this machine: {reason}"
        return
    with_what = "random images; reading shards is not included" if speed["is_synthetic"] else "data"
    step = f"{speed['step_s']:.3g} s per step"
    yield "speed", f"{speed['images_per_s']:.3g} images/s, {step} (measured with {with_what})"
    yield "time", f"{duration(speed['eta_s'])} for all steps, without evaluations and checkpoints"
    shares = ", ".join(f"{SHARES[name]} {share:.0%}" for name, share in speed["shares"].items())
    yield "limit", f"{SHARES[speed['limit']]} (of a step: {shares})"


def _changes(changes: dict[str, int]) -> str:
    if not changes:
        return "nothing that plan knows"
    parts = (
        f"{name} {'adds' if bytes_ > 0 else 'saves'} about {size(abs(bytes_))}"
        for name, bytes_ in changes.items()
    )
    return f"memory per worker: {'; '.join(parts)}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count}"
