"""DeepSpeed's configuration."""

from typing import Any

import torch

from pipeline.settings import ZeroSettings


def deepspeed_config(
    zero: ZeroSettings, clip: float, micro_steps: int, device: torch.device
) -> dict[str, Any]:
    """Return DeepSpeed's configuration.

    DeepSpeed uses the size of a batch for figures of speed only, which are off. It would refuse
    sizes that differ between ranks, so that it is told of one image per micro-batch.
    """
    gpu = device.type == "cuda"
    bf16 = gpu and torch.cuda.is_bf16_supported()
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": clip if zero.stage > 0 else 0.0,
        "steps_per_print": 10**9,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU twice per step
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # it would be compiled; torch's AdamW is as exact
        "zero_optimization": {
            "stage": zero.stage,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
            **({"offload_optimizer": {"device": "cpu", "pin_memory": gpu}} if zero.offload else {}),
        },
        # No module is "safe" to reduce in bfloat16: compute is bfloat16, gradients are float32.
        "torch_autocast": {
            "enabled": bf16,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }
