"""One frame of `watch`: the records of a run as a few lines of text."""

import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich.text import Text

from jobs.records import FAILED, FINISHED, RUNNING, SILENT, View, numbers
from pipeline.run import events
from pipeline.run.folder import all_scores
from pipeline.run.ledger import ledger
from pipeline.score.headline import HEADLINE
from shards.jsonl import Row
from shards.text import printable

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN_BLOCKS = "_.-=+*%#"
RECENT = 20  # rows over which speeds are averaged
EVENTS = 6
LABEL = 12  # characters of the first column
STYLES = {RUNNING: "bold green", FINISHED: "bold cyan", FAILED: "bold red", SILENT: "bold yellow"}
CURVES = {"loss": "loss", "  class": "loss_ce", "  mask": "loss_mask", "  dice": "loss_dice"}


def frame(view: View, now: float, width: int, blocks: str = BLOCKS) -> Text:
    """Return a frame of at most `width` columns.

    Args:
        view: The run.
        now: The time, in seconds since 1970.
        width: Columns of the output.
        blocks: The characters of a curve, from low to high.
    """
    text = Text(no_wrap=True, overflow="ellipsis")
    lines = (
        *_head(view, now),
        *_progress(view, width),
        *_losses(view, width, blocks),
        *_speed(view),
        *_scores(view, width, blocks),
        *_account(view),
        *_events(view),
    )
    for label, value, style in lines:
        text.append(f"{label:<{LABEL}}", "dim")
        text.append(f"{printable(value)}\n", style)
    text.rstrip()
    return text


Line = tuple[str, str, str]  # label, value, style


def sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """Return a curve of at most `width` characters; each is the mean of its share of the values."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [len(values) * n // count for n in range(count + 1)]
    means = [statistics.fmean(values[a:b]) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(blocks) - 1) / (high - low) if high > low else 0
    return "".join(blocks[round((mean - low) * scale)] for mean in means)


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, such as "2 h 05 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours = seconds // 60, seconds // 3600
    if minutes < 60:
        return f"{minutes} min {seconds % 60:02} s"
    if hours < 48:
        return f"{hours} h {minutes % 60:02} min"
    return f"{hours // 24} d {hours % 24:02} h"


def _head(view: View, now: float) -> Iterator[Line]:
    state, age = view.state(now)
    said = f"no sign of life for {duration(age)}" if state == SILENT else state
    if state == RUNNING and view.last_sign:
        said += f", last sign {duration(age)} ago"
    yield "run", f"{view.config.name}  {view.location}", "bold"
    yield "state", said, STYLES.get(state, "bold")
    if (start := view.start) is not None:
        workers = f"{start.world_size} worker{'s' * (start.world_size > 1)} on "
        hosts = ", ".join(dict.fromkeys(start.hosts or [start.host]))
        restarts = f"attempt {start.attempt}, from step {start.step}"
        yield "workers", f"{workers}{hosts} ({start.device}), {restarts}", ""


def _progress(view: View, width: int) -> Iterator[Line]:
    step, steps = view.step, view.steps
    room = max(10, min(40, width - LABEL - 40))
    full = room * step // steps
    share = f"step {step}/{steps}  {100 * step / steps:.1f} %"
    times = numbers(view.metrics.rows[-RECENT:], "step_s")
    eta = f"  {duration(statistics.fmean(times) * (steps - step))} left" if times else ""
    yield "progress", f"[{'#' * full}{'.' * (room - full)}] {share}{eta * (step < steps)}", ""


def _losses(view: View, width: int, blocks: str) -> Iterator[Line]:
    for label, name in CURVES.items():
        values = numbers(view.metrics.rows, name)
        if values:
            curve = sparkline(values, width - LABEL - 30, blocks)
            yield label, f"{values[-1]:>9.4g}  {curve}  {min(values):.4g} to {max(values):.4g}", ""
    rates = [(name, numbers(view.metrics.rows[-RECENT:], name)) for name in ("lr", "grad_norm")]
    shown = [f"{name} {values[-1]:.3g}" for name, values in rates if values]
    if shown:
        yield "update", "   ".join(shown), ""


def _speed(view: View) -> Iterator[Line]:
    rows = [row for row in view.metrics.rows[-RECENT:] if "images_per_s" in row]
    speeds, steps = numbers(rows, "images_per_s"), numbers(rows, "step_s")
    waits, each = numbers(rows, "data_wait_s"), numbers(rows, "images_per_s_per_worker")
    if not speeds or not steps or not waits:
        return
    per_worker = f" ({statistics.fmean(each):.3g} per worker)" if each else ""
    step, wait = statistics.fmean(steps), statistics.fmean(waits)
    share = f", of which {100 * wait / step:.0f} % wait for data" if step > 0 else ""
    speed = f"{statistics.fmean(speeds):.4g} images/s{per_worker}"
    yield "speed", f"{speed}, {step:.3g} s per step{share}", ""
    kinds = {"GPU": ".gpu_memory_gib", "host": ".memory_gib"}
    fullest = {name: _fullest(view.metrics.last, kind) for name, kind in kinds.items()}
    if used := [f"{kind} {memory}" for kind, memory in fullest.items() if memory]:
        yield "memory", ", ".join(used), ""


def _fullest(row: Row, kind: str) -> str:
    """Return the largest figure of a kind among hosts, and the host; "" without one."""
    used = {
        name.removeprefix("hosts/").removesuffix(kind): value
        for name in row
        if name.startswith("hosts/") and name.endswith(kind)
        for value in numbers([row], name)
    }
    host = max(used, key=used.__getitem__, default="")
    return f"{used[host]:.1f} GiB ({host})" if host else ""


def _scores(view: View, width: int, blocks: str) -> Iterator[Line]:
    scored = all_scores(view.folder)
    if not scored:
        return
    last = scored[-1]
    shown = [f"{name} {last[name]:.1f}" for name in HEADLINE if isinstance(last.get(name), float)]
    yield "scores", f"step {last['step']}: {'  '.join(shown)}", ""
    if (best := view.best()) is not None:
        name, value, step = best
        curve = sparkline(numbers(scored, name), width - LABEL - 40, blocks)
        yield "  best", f"{name} {value:.1f} at step {step}  {curve}", "bold"


def _account(view: View) -> Iterator[Line]:
    seconds = ledger(view.history)
    total = sum(seconds.values())
    if total > 0:
        shares = {kind: 100 * spent / total for kind, spent in seconds.items()}
        shown = [f"{kind} {share:.0f} %" for kind, share in shares.items() if share >= 0.5]
        yield "time", f"{duration(total)}: {', '.join(shown)}", ""
    rows = [row for row in view.metrics.rows[-RECENT:] if "damaged_samples" in row]
    starts = [event for event in view.history if isinstance(event, events.Start)]
    counts = {"restarts": max(0, len(starts) - 1)}
    counts |= {"damaged samples": rows[-1]["damaged_samples"]} if rows else {}
    counts |= {"skipped steps": rows[-1].get("skipped_steps", 0)} if rows else {}
    yield "counts", ", ".join(f"{name} {count}" for name, count in counts.items()), ""


def _events(view: View) -> Iterator[Line]:
    for event in view.history[-EVENTS:]:
        is_bad = isinstance(event, events.Failure | events.Warned | events.CheckpointFailed)
        said = " ".join(event.describe().split())
        clock = time.strftime("%H:%M:%S", time.localtime(event.time))
        yield clock, said, "yellow" if is_bad else ""
