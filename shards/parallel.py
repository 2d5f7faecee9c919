"""Shards made by several processes at a time."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shards.errors import UsageError
from shards.writer import Job, Made, write_shard


def run_jobs(todo: list[Job], jobs: int, name: str) -> list[Made]:
    """Make the shards, `jobs` at a time, in the order of `todo`; a terminal sees progress."""
    made = {}
    console = Console(stderr=True)
    columns = TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=sum(len(job.items) for job in todo))
        for tar, result in _results(todo, min(jobs, len(todo))):
            made[tar] = result
            progress.advance(bar, result.shard.samples)
    return [made[job.tar] for job in todo]


def _results(todo: list[Job], jobs: int) -> Iterator[tuple[Path, Made]]:
    if jobs == 1:
        for job in todo:
            yield job.tar, write_shard(job)
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_die_with_parent) as pool:
        futures = {pool.submit(write_shard, job): job.tar for job in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise UsageError(
                "a build process was killed, perhaps for want of memory; run again to go on, "
                f"with --jobs below {jobs}"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever; end it instead."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
