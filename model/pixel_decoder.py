"""Pixel decoder: a deformable encoder over strides 32, 16, 8, and one FPN step to stride 4."""

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.deformable_attention import deformable_attention
from model.deformable_self_attention import deformable_self_attention, sample_points
from model.kernels import REFERENCE, implementation
from model.network_settings import PixelDecoderSettings
from model.norms import group_norm
from model.position import pixel_centers, sine_encoding
from model.recompute import recompute
from model.token_linear import TokenLinear

LEVELS = (32, 16, 8)  # strides of the memory, coarse to fine


class PixelDecoder(nn.Module):
    """Module that turns the features of a backbone into multi-scale memory and mask features.

    Args:
        channels: Channels of the features by stride, 4 to 32.
        dim: Channels of every output.
        settings: Sizes and precision.
    """

    recomputes = False  # whether backward computes each layer again

    def __init__(self, channels: dict[int, int], dim: int, settings: PixelDecoderSettings) -> None:
        super().__init__()
        self.takes_autocast = settings.dtype == "bf16"
        projections = [nn.Conv2d(channels[stride], dim, 1) for stride in LEVELS]
        self.input_proj = nn.ModuleList(
            nn.Sequential(conv, group_norm(dim)) for conv in projections
        )
        self.level_embed = nn.Parameter(torch.randn(len(LEVELS), dim))
        layer = EncoderLayer(dim, settings)
        # Copies share their FFN biases at the start, as in the published initialization.
        layers = [copy.deepcopy(layer) for _ in range(settings.layers)]
        self.layers = nn.ModuleList(layers)
        lateral = nn.Conv2d(channels[4], dim, 1, bias=False)
        self.lateral = nn.Sequential(lateral, group_norm(dim))
        output = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.output = nn.Sequential(output, group_norm(dim), nn.ReLU())
        self.mask_features = nn.Conv2d(dim, dim, 1)
        for layer in layers:
            layer.reset_weights()
        for conv in projections:
            nn.init.xavier_uniform_(conv.weight)
        for conv in (lateral, output, self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # U(±sqrt(3 / fan_in))
        for conv in (*projections, self.mask_features):
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, features: dict[int, Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return memory [B, C, H/s, W/s] for s = 32, 16, 8, and mask features [B, C, H/4, W/4]."""
        if self.takes_autocast:
            return self._decode(features)
        with torch.autocast(self.level_embed.device.type, enabled=False):
            dtype = self.level_embed.dtype
            return self._decode({stride: x.to(dtype) for stride, x in features.items()})

    def _decode(self, features: dict[int, Tensor]) -> tuple[list[Tensor], Tensor]:
        maps = [
            project(features[stride])
            for project, stride in zip(self.input_proj, LEVELS, strict=True)
        ]
        shapes = tuple((x.shape[2], x.shape[3]) for x in maps)
        source = torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)  # [B, N, C]
        device, dim, dtype = source.device, source.shape[2], self.level_embed.dtype
        position = torch.cat(
            [
                sine_encoding(*shape, dim, device, dtype) + embed
                for shape, embed in zip(shapes, self.level_embed, strict=True)
            ]
        )  # [N, C]
        centers = pixel_centers(shapes, device, dtype)
        for layer in self.layers:
            run = partial(recompute, layer) if self.recomputes else layer
            source = run(source, position, centers, shapes)
        memory = [
            x.unflatten(2, shape)
            for x, shape in zip(
                source.transpose(1, 2).split([h * w for h, w in shapes], dim=2), shapes, strict=True
            )
        ]
        fine = self.lateral(features[4])
        coarse = memory[-1]
        if not coarse.is_cuda:
            # A transposed view would pass its layout on to the upsampled map, and that be copied.
            coarse = coarse.contiguous()
        fine = fine + F.interpolate(coarse, fine.shape[2:], mode="bilinear")
        return memory, self.mask_features(self.output(fine))

    def compile_blocks(self) -> None:
        """Run the projections, the layers, and the convolutions through `torch.compile`.

        Upsampling stays outside. Compiled, its backward adds atomically and takes 14 ms instead of
        2 ms (16 images of 1024 pixels on an H200).
        """
        for block in (*self.input_proj, *self.layers, self.lateral, self.output):
            block.compile(dynamic=False)


class EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each with a residual and a LayerNorm after it.

    Backward computes the hidden channels of the feed-forward block again. At 512 pixels (R50, one
    image) this takes 3 % of a step's time on a CPU and saves 126 MiB.
    """

    def __init__(self, dim: int, settings: PixelDecoderSettings) -> None:
        super().__init__()
        self.self_attn = DeformableSelfAttention(dim, settings.heads, settings.points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = TokenLinear(dim, settings.feedforward)
        self.linear2 = TokenLinear(settings.feedforward, dim)
        self.norm2 = nn.LayerNorm(dim)

    def reset_weights(self) -> None:
        """Draw new weights; the biases of the feed-forward block stay unchanged."""
        self.self_attn.reset_parameters()
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(
        self,
        source: Tensor,
        position: Tensor,
        centers: Tensor,
        shapes: tuple[tuple[int, int], ...],
    ) -> Tensor:
        """Return the next tokens [B, N, C].

        Args:
            source: Tokens [B, N, C] of all levels.
            position: Position encodings [N, C] of the tokens.
            centers: Normalized pixel centers [N, 2] of the tokens.
            shapes: (H, W) of each level.
        """
        source = self.norm1(source + self.self_attn(source, position, centers, shapes))
        return self.norm2(source + recompute(self._feed_forward, source))

    def _feed_forward(self, source: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(source)))


class DeformableSelfAttention(nn.Module):
    """Attention of every token to a few points around its position on each level.

    The offsets of the points and their weights are linear functions of the token.
    """

    def __init__(self, dim: int, heads: int, points: int) -> None:
        super().__init__()
        self.sampling = (heads, len(LEVELS), points)
        samples = math.prod(self.sampling)
        self.sampling_offsets = TokenLinear(dim, samples * 2)
        self.attention_weights = TokenLinear(dim, samples)
        self.value_proj = TokenLinear(dim, dim)
        self.output_proj = TokenLinear(dim, dim)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the initial weights.

        The points of head h start 1 to `points` pixels away in the direction 2πh/heads, scaled to
        the border of a square, with equal weights.
        """
        heads, _, points = self.sampling
        angle = torch.arange(heads) * (2 * math.pi / heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=1)
        direction = direction / direction.abs().amax(1, keepdim=True)
        steps = torch.arange(1, points + 1)[:, None]
        offsets = direction[:, None, None] * steps  # [heads, 1, points, 2]
        offsets = offsets.expand(*self.sampling, 2).flatten()
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(linear.bias)
        self.sampling_offsets.bias.copy_(offsets)

    def forward(
        self,
        source: Tensor,
        position: Tensor,
        centers: Tensor,
        shapes: tuple[tuple[int, int], ...],
    ) -> Tensor:
        """Return [B, N, C]; the arguments are those of `EncoderLayer.forward`."""
        value = self.value_proj(source).unflatten(2, (self.sampling[0], -1))
        with torch.autocast(source.device.type, enabled=False):  # coordinates need full precision
            source = source.to(centers.dtype)
            sampled = self._attend(value, source, position, centers, shapes)
        return self.output_proj(sampled)

    def _attend(
        self,
        value: Tensor,
        source: Tensor,
        position: Tensor,
        centers: Tensor,
        shapes: tuple[tuple[int, int], ...],
    ) -> Tensor:
        """Return the weighted sums [B, N, C] of the values [B, N, heads, D]."""
        linears = self.sampling_offsets, self.attention_weights
        if implementation("deformable_self_attention", source.device) == REFERENCE:
            # Two products, so that neither the projections nor their gradients are concatenated.
            offsets, logits = (recompute(self._of_query, x, source, position) for x in linears)
            points = sample_points(offsets, logits, centers, shapes, value.shape[2])
            return deformable_attention(value, shapes, *points)
        projected = recompute(self._of_query, self._both, source, position)
        return deformable_self_attention(value, shapes, projected)

    @staticmethod
    def _of_query(linear: Callable[[Tensor], Tensor], source: Tensor, position: Tensor) -> Tensor:
        return linear(source + position)

    def _both(self, query: Tensor) -> Tensor:
        """Return the offsets and the logits of all samples, [B, N, 3·samples], as one product."""
        linears = self.sampling_offsets, self.attention_weights
        weight = torch.cat([linear.weight for linear in linears])
        return F.linear(query, weight, torch.cat([linear.bias for linear in linears]))
