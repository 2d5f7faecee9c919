"""A step of a run, taken in processes of its own, whose memory and time are measured."""

import contextlib
import multiprocessing
import os
import signal
import statistics
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from jobs import config as configs
from jobs.bench import peak_mib_of
from jobs.config import Config
from jobs.local_ray import PRIVATE
from jobs.worker import threads_per_worker
from model.network import Network
from pipeline.data.batch import Batch
from pipeline.data.split import BatchSplit, split_of
from pipeline.data.training import TrainingData
from pipeline.distributed import rank_device
from pipeline.run.snapshot import Snapshot
from pipeline.score.inference import infer
from pipeline.step.engine import Engine
from pipeline.step.step import TrainingStep
from shards.errors import Failed, M2FError
from shards.parallel import exit_with_parent

MICRO_BATCHES = 2  # of the measured step: one more than none has gradients that are added to
MEASURED_S, MOST_STEPS = 8, 20
POLL_S = 0.05
SHARE = 0.9  # of the free memory that a trial may take
TOO_LARGE = "too large"


class Measured(NamedTuple):
    """What a step takes.

    Attributes:
        memory_bytes: Peak memory of the largest worker: of its GPU, or of its process without one.
        data_s: Time of a step of the run in which the slowest worker waits for its images.
        network_s: Time of its forward and backward passes.
        update_s: Time of its update.
        is_synthetic: Whether random images with random truth were used.
    """

    memory_bytes: int
    data_s: float
    network_s: float
    update_s: float
    is_synthetic: bool

    @property
    def step_s(self) -> float:
        """Time of a step."""
        return self.data_s + self.network_s + self.update_s


def measure(
    config: Config,
    classes: int,
    workers: int,
    gpu: bool,
    *,
    has_data: bool,
    seconds: float = MEASURED_S,
) -> Measured | None:
    """Take a few steps in new processes on this machine, one per worker.

    The steps have at most two micro-batches per worker. The times are those of a whole step, whose
    other micro-batches take as long.

    Args:
        config: The config.
        classes: Number of classes.
        workers: Number of workers on this machine.
        gpu: Whether each of them has a GPU.
        has_data: Whether its shard sets are here; otherwise images and truth are random.
        seconds: Time after which no other step is begun; one is measured in any case.

    Returns:
        The largest figures of all workers; None if they do not fit the memory of the machine.

    Raises:
        M2FError: What a worker raised.
    """
    limit = int(SHARE * psutil.virtual_memory().available)
    arguments = (configs.to_dict(config), classes, workers, gpu, has_data, seconds)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="m2f-") as folder, contextlib.ExitStack() as stack:
        processes: dict[Any, BaseProcess] = {}
        for rank in range(workers):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(*arguments, rank, folder, theirs))
            process.start()
            stack.callback(_end, process)
            theirs.close()
            processes[ours] = process
        return _largest(_answers(processes, limit))


def _answers(processes: dict[Any, BaseProcess], limit: int) -> list[Any]:
    """Wait for all answers, as long as the processes together stay below a limit in bytes.

    Args:
        processes: The process at the other end of each connection.
        limit: The limit.

    Returns:
        The answers until the first that is not Measured.
    """
    answers: list[Any] = []
    waiting = set(processes)
    while waiting and all(isinstance(answer, tuple) for answer in answers):
        for ready in wait(list(waiting), POLL_S):
            waiting.discard(ready)
            answers.append(_received(ready, processes[ready]))
        if sum(map(_memory, processes.values())) > limit:
            answers.append(TOO_LARGE)
    return answers


def _largest(answers: list[Any]) -> Measured | None:
    """Return the largest figures of all workers, or None if a step was too large for one."""
    if TOO_LARGE in answers:
        return None
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return Measured(*(max(column) for column in zip(*answers, strict=True)))


def _received(ours: Any, process: BaseProcess) -> Any:
    """Return the answer of a process, or what its end means."""
    try:
        return ours.recv()
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGKILL:  # memory was full
            return TOO_LARGE
        return Failed(f"the process of a measured step ended with {process.exitcode}")


def _memory(process: BaseProcess) -> int:
    """Return the resident memory of a process and of those below it."""
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        return sum(p.memory_info().rss for p in (parent, *parent.children(recursive=True)))
    return 0


def _end(process: BaseProcess) -> None:
    """End a process; those below it end with it."""
    process.kill()
    process.join()


def _work(
    settings: dict[str, Any],
    classes: int,
    workers: int,
    gpu: bool,
    has_data: bool,
    seconds: float,
    rank: int,
    folder: str,
    answer: Connection,
) -> None:
    """Measure in one worker, and send what was found, TOO_LARGE, or the error."""
    threading.Thread(target=exit_with_parent, daemon=True).start()
    os.environ |= PRIVATE | {"RANK": f"{rank}", "WORLD_SIZE": f"{workers}", "LOCAL_RANK": f"{rank}"}
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # of DeepSpeed and gloo
        os.dup2(silence, stream)
    try:
        config = configs.merge(settings, [])
        torch.set_num_threads(threads_per_worker(config.scaling.threads, workers))
        store = FileStore(str(Path(folder, "store")), workers)
        backend = "nccl" if gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=workers)
        split = split_of(config, workers, rank)
        answer.send(tuple(_measured(config, classes, split, has_data, seconds)))
    except torch.OutOfMemoryError:
        answer.send(TOO_LARGE)
    except M2FError as error:
        answer.send(error)
    except Exception:
        text = traceback.format_exc().strip().splitlines()[-1]
        answer.send(Failed(f"a measured step failed: {text}"))


def _measured(
    config: Config, classes: int, whole: BatchSplit, has_data: bool, seconds: float
) -> Measured:
    """Take steps in this process, and return the times of a whole step, and the memory."""
    from jobs.bench.training import prepared  # with transformers, which takes seconds

    device = rank_device()
    images = min(MICRO_BATCHES * max(whole.sizes) * whole.world_size, whole.global_batch)
    split = replace(whole, global_batch=images)
    train_step, engine = prepared(config, classes, split, device)
    if has_data:
        data = TrainingData(config.data, config.task, config.seed)
        batches = data.batches(0, split, pin_memory=device.type == "cuda")
    else:
        batches = _random(config, classes, split)
    if engine.stage < 3 and split.rank == 0:
        Snapshot(engine.layout()).fill(engine.tensors())  # as the first checkpoint does
    rows, began = [], None
    while len(rows) <= MOST_STEPS:
        rows.append(_timed(train_step, engine, batches, device))
        began = began or time.monotonic()  # the first step is not counted
        is_over = torch.tensor(float(len(rows) > 1 and time.monotonic() - began > seconds))
        dist.all_reduce(is_over.to(device), dist.ReduceOp.MAX)
        if is_over:
            break
    _infer(config, classes, engine, device)
    data_s, network_s, update_s = (
        statistics.median(column) for column in zip(*rows[1:], strict=True)
    )
    factor = sum(whole.sizes) / sum(split.sizes)
    memory = (
        torch.cuda.max_memory_reserved(device)
        if device.type == "cuda"
        else int(peak_mib_of() * 2**20)
    )
    return Measured(memory, factor * data_s, factor * network_s, update_s, not has_data)


def _random(config: Config, classes: int, split: BatchSplit) -> Iterator[Batch]:
    """Yield random batches of the sizes of a run, without end."""
    from jobs.bench import step

    host, crop = torch.device("cpu"), config.data.crop_size
    batches = [
        step.random_batch(host, len(part), *crop, classes)._replace(positions=list(part))
        for part in split.positions()
    ]
    while True:
        yield from batches


def _timed(
    train_step: TrainingStep, engine: Engine, batches: Iterator[Batch], device: torch.device
) -> tuple[float, float, float]:
    """Take a step, and return the seconds of its data, its passes, and its update."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    start = now()
    received = train_step.receive(batches)
    data = now()
    train_step.forward_backward(received)
    passes = now()
    engine.step(1.0)
    return data - start, passes - data, now() - passes


def _infer(config: Config, classes: int, engine: Engine, device: torch.device) -> None:
    """Predict for an image of an evaluation, which may take more memory than a step."""
    if engine.stage == 3:
        return  # all workers would have to take part
    model, settings = engine.module, config.evaluation
    assert isinstance(model, Network)
    image = np.zeros((settings.short, min(settings.long, 4 * settings.short // 3), 3), np.uint8)
    with torch.compiler.set_stance("force_eager"):
        infer(model.eval(), image, settings, [True] * classes, device)
