"""Everything that is measured on a GPU, in one command of less than ten minutes.

It needs the checkout, torch, transformers, Triton, and DeepSpeed, but neither Ray nor a network.
Every section runs by itself: what cannot run says why, and the others are still measured. On a
machine without a GPU the same code runs at small sizes, so that tests keep it working.

The rows of `gpu.time` add up the device time of one training step by kind of kernel.
"""

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]  # as documented
from torch.profiler import ProfilerActivity, profile

from jobs.bench import Row, alternate, attention, row, step, training
from jobs.bench.overfit import SAMPLE
from jobs.build import build
from jobs.cluster.package import ROOT
from model.criterion import CriterionSettings
from model.deformable_self_attention import deformable_self_attention
from model.mask2former import Mask2Former, ModelSettings
from model.masked_decoder import MaskedDecoderSettings
from model.pixel_decoder import PixelDecoderSettings
from pipeline.distributed import rank_device
from pipeline.run.track import METRICS
from shards.build.options import BuildOptions
from shards.jsonl import rows as json_rows

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SIZE, BATCH = (1024, 16) if ON_GPU else (64, 2)
PEER_GIB = 5 * BATCH  # the peer's memory for BATCH images
STEPS = 40 if ON_GPU else 4  # of training from shards
MATRIX = 8192 if ON_GPU else 256
TURNS = 7 if ON_GPU else 1
PRESET = "coco_panoptic_r50" if ON_GPU else "tiny"
SMALL = ModelSettings(
    backbone="resnet",
    backbone_config={"depths": [1, 1, 1, 1], "layer_type": "basic", "hidden_sizes": [16] * 4},
    queries=12,
    pixel_decoder=PixelDecoderSettings(layers=1, feedforward=64),
    masked_decoder=MaskedDecoderSettings(layers=3, feedforward=64),
)
MODEL = step.SETTINGS if ON_GPU else SMALL
CRITERION = CriterionSettings(points=12544 if ON_GPU else 64)
TESTS_S, TRAIN_S = 150, 240

# Kinds of kernels, by parts of their names; the first match counts.
KINDS = {
    "fused by the compiler": ("triton_",),
    "deformable attention": ("_deformable",),
    "convolution": ("conv", "fprop", "dgrad", "wgrad", "nchwToNhwc", "nhwcToNchw"),
    "attention": ("sdpa", "flash", "fmha"),
    "matrix product": ("gemm", "nvjet", "cutlass", "cublas"),
    "norm": ("norm", "Norm", "Moments"),
    "sampling and indexing": ("grid_sampler", "EmbeddingBag", "gather", "scatter", "index"),
    "optimizer": ("multi_tensor", "FusedAdam"),
    "copy": ("copy", "Memcpy", "Memset", "CatArray"),
    "sum": ("reduce",),
    "pointwise": ("elementwise",),
}


def rows() -> list[Row]:
    """Measure every section; a section that fails becomes one row with the reason as its note."""
    sections: dict[str, Callable[[], list[Row]]] = {
        "ceilings": ceilings,
        "tests": gpu_tests,
        "attention": attention_rows,
        "step": peer_rows,
        "train": train_rows,
        "end_to_end": end_to_end_rows,
    }
    measured: list[Row] = []
    for name, section in sections.items():
        with Console(stderr=True).status(f"gpu: {name}"):
            try:
                measured += section()
            except Exception as error:  # the other sections still run
                traceback.print_exc()
                failed = row(f"gpu.{name}", "", None, better="higher")
                measured.append(failed | {"note": f"{type(error).__name__}: {error}"})
        gc.collect()
        torch.cuda.empty_cache()
    return measured


def ceilings() -> list[Row]:
    """Measure the copy rate and the rates of matrix products that this device reaches."""
    source = torch.randn(MATRIX, 4 * MATRIX, device=DEVICE)
    target = torch.empty_like(source)
    square = source[:, :MATRIX].bfloat16()
    taken = seconds({"copy": lambda: target.copy_(source), "product": lambda: square @ square})
    copied = 2 * source.nbytes / taken["copy"] / 1e12
    product = 2 * MATRIX**3 / taken["product"] / 1e12
    return [
        row("gpu.copy", "TB/s", copied, better="higher"),
        row("gpu.matrix_product.bf16", "TFLOP/s", product, better="higher"),
    ]


def gpu_tests() -> list[Row]:
    """Run the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/model"], cwd=ROOT, capture_output=True, text=True, timeout=TESTS_S
    )
    last = done.stdout.strip().splitlines()[-1:] or done.stderr.strip().splitlines()[-1:]
    passed = row("gpu.tests", "exit code", done.returncode, better="lower", target="<= 0")
    return [passed | {"note": "".join(last)}]


def attention_rows() -> list[Row]:
    """Measure deformable attention forward and backward beside grid_sample, in float32."""
    shapes, inputs = attention.case(SIZE, peer_batch(), DEVICE)
    value, projected = inputs
    gradient = torch.randn_like(value.flatten(2))
    sides = {"ours": deformable_self_attention, "peer": attention.peer}
    calls = {name: partial(side, value, shapes, projected) for name, side in sides.items()}
    outputs = {name: call() for name, call in calls.items()}
    forward = seconds(calls)
    # A difference of two times could be negative on a busy machine, so backward runs alone.
    backward = seconds(
        {
            name: partial(torch.autograd.grad, output, inputs, gradient, retain_graph=True)
            for name, output in outputs.items()
        }
    )
    targets = (">= 6x", ">= 9x") if ON_GPU else (None, None)
    return [
        row(
            f"gpu.attention.{part}",
            "calls/s",
            1 / taken["ours"],
            peer=1 / taken["peer"],
            peer_name="transformers grid_sample",
            better="higher",
            target=target,
        )
        for part, taken, target in zip(
            ("forward", "backward"), (forward, backward), targets, strict=True
        )
    ]


def peer_rows() -> list[Row]:
    """Measure forward, criterion, and backward beside transformers under the same autocast.

    On a GPU our network is compiled and recorded as in training.
    """
    batch = step.random_batch(DEVICE, peer_batch(), SIZE)
    sides = step.build(MODEL, CRITERION, batch)
    if ON_GPU:
        training.join_a_group_of_one(DEVICE)
        rank_device()
        ours = sides["ours"].model
        assert isinstance(ours, Mask2Former)
        ours.compile_blocks()
        ours.record(torch.zeros(batch.images.shape, device=DEVICE))
    taken = seconds({name: partial(step.step, side) for name, side in sides.items()})
    rates = {name: len(batch.images) / taken[name] for name in sides}
    return [
        row(
            "gpu.step.rate",
            "images/s",
            rates["ours"],
            peer=rates["peer"],
            peer_name="transformers",
            better="higher",
            target=">= 3x" if ON_GPU else None,
        )
    ]


def train_rows() -> list[Row]:
    """Measure the step of a training run: engine and optimizer, syncs, memory, and kernels."""
    run = training.training(MODEL, CRITERION, BATCH, SIZE, DEVICE)
    taken = seconds({"step": run})["step"]
    rate, goal = BATCH / taken, ">= 160" if ON_GPU else None
    measured = [row("gpu.train.rate", "images/s", rate, better="higher", target=goal)]
    if ON_GPU:
        memory = torch.cuda.memory_reserved() / 2**30 / BATCH  # that of the CUDA graphs included
        syncs = step.syncs_of(run)
        measured += [
            row("gpu.train.memory", "GiB per image", memory, better="lower", target="<= 2.5"),
            row("gpu.train.host_syncs", "per step", len(syncs), better="lower", target="<= 2")
            | {"note": ", ".join(syncs)},
        ]
    flops = BATCH * training.flops_per_image(MODEL, SIZE, DEVICE)
    measured.append(row("gpu.train.math", "TFLOP/s", flops / taken / 1e12, better="higher"))
    return measured + kernel_rows(run)


def peer_batch() -> int:
    """Return the number of images that the peer has memory for, at most BATCH."""
    if not ON_GPU:
        return BATCH
    gib = torch.cuda.get_device_properties(DEVICE).total_memory / 2**30
    return BATCH if gib > PEER_GIB else BATCH // 2


def kernel_rows(run: Callable[[], object]) -> list[Row]:
    """Return the device time of a step by kind of kernel, and the number of kernels."""
    if not ON_GPU:
        return []
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        run()
        torch.cuda.synchronize()
    times: dict[str, float] = {}
    launches = 0
    for event in recorded.key_averages():
        is_range = event.key.startswith(("##", "m2f::"))  # ranges that hold kernels
        if event.device_type != DeviceType.CUDA or is_range:
            continue
        kind = next(
            (kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)),
            "other",
        )
        times[kind] = times.get(kind, 0) + event.self_device_time_total / 1000
        launches += event.count
    listed = sorted(times.items(), key=lambda item: -item[1])
    return [
        row("gpu.train.launches", "kernels per step", launches, better="lower"),
        *(row(f"gpu.time.{kind}", "ms per step", ms, better="lower") for kind, ms in listed),
    ]


def end_to_end_rows() -> list[Row]:
    """Train from shards through the worker's loop under torchrun, and read its metrics."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(BuildOptions("coco", SAMPLE, folder / "shards", splits=("train",), jobs=1))
        shards = folder / "shards" / "train"
        changes = [
            "model.weights=none",
            f"data.train={shards}",
            f"data.val={shards}",
            f"data.crop={SIZE}",
            f"criterion.points={CRITERION.points}",
            f"data.loader_workers={max(1, len(os.sched_getaffinity(0)) - 1)}",
            f"batch.size={BATCH}",
            f"batch.micro={BATCH}",
            "scaling.workers=1",
            f"trainer.steps={STEPS}",
            f"trainer.log_every={STEPS // 4}",
            "evaluation.images=1",
            "tracking.wandb.mode=disabled",
        ]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        worker = ["--nproc-per-node", "1", "-m", "jobs.bench.loop"]
        done = subprocess.run(
            [*command, *worker, str(folder / "run"), PRESET, *changes],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TRAIN_S,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        logged = [r for r in json_rows(folder / "run" / METRICS) if "images_per_s" in r][1:]
    rate = statistics.median(r["images_per_s"] for r in logged)
    wait = statistics.median(r["data_wait_s"] / r["step_s"] for r in logged)
    return [
        row("gpu.end_to_end.rate", "images/s", rate, better="higher",
            target=">= 160" if ON_GPU else None),
        row("gpu.end_to_end.data_wait", "of a step", wait, better="lower"),
    ]  # fmt: skip


def seconds(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of each function, which take turns, until the device is done."""

    def whole(work: Callable[[], object]) -> None:
        work()
        if ON_GPU:
            torch.cuda.synchronize()

    return alternate({name: partial(whole, work) for name, work in works.items()}, TURNS)
