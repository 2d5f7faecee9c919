"""Precision of the pixel decoder under autocast."""

import pytest
import torch

from model.pixel_decoder import PixelDecoder, PixelDecoderSettings
from model.settings import SettingError

CHANNELS = {4: 16, 8: 24, 16: 32, 32: 40}


def decode(dtype: str, autocast: bool) -> tuple[PixelDecoder, list[torch.Tensor]]:
    torch.manual_seed(0)
    decoder = PixelDecoder(CHANNELS, 64, PixelDecoderSettings(layers=2, dtype=dtype))
    features = {s: torch.randn(2, c, 128 // s, 96 // s) for s, c in CHANNELS.items()}
    if autocast:
        features = {stride: x.bfloat16() for stride, x in features.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        memory, mask_features = decoder(features)
    sum(x.float().square().mean() for x in (*memory, mask_features)).backward()
    return decoder, [*memory, mask_features]


def test_fp32_leaves_autocast_as_published() -> None:
    _, outputs = decode("fp32", autocast=True)
    assert {x.dtype for x in outputs} == {torch.float32}


def test_bf16_follows_autocast_and_stays_near() -> None:
    decoder, half = decode("bf16", autocast=True)
    assert half[-1].dtype == torch.bfloat16
    assert {p.grad.dtype for p in decoder.parameters()} == {torch.float32}
    _, exact = decode("fp32", autocast=True)
    for x, y in zip(half, exact, strict=True):
        assert 0 < (x.float() - y).norm() / y.norm() < 0.02


def test_without_autocast_both_are_the_same() -> None:
    for x, y in zip(decode("bf16", False)[1], decode("fp32", False)[1], strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, y)


def test_unknown_dtype_is_named() -> None:
    with pytest.raises(SettingError, match=r"^dtype=fp16; choose one of bf16, fp32$"):
        PixelDecoderSettings(dtype="fp16")
