"""The network of the paper's code, written out with its names of parameters.

It shares no code with `model`, so that it verifies both names and arithmetic, and it follows the
paper's code step by step: the backbones of arXiv 1512.03385 and 2103.14030, and the decoders of
2010.04159 and 2112.01527.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

HEADS, LEVELS, POINTS, GROUPS = 8, 3, 4, 32


class Official:
    """Tensors by the names of the paper's code.

    Attributes:
        read: Names of the tensors that have been used.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors, self.read = tensors, set()

    def __call__(self, name: str) -> Tensor:
        self.read.add(name)
        return self.tensors[name]

    def both(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the weight and the bias of a layer."""
        return self(f"{name}.weight"), self(f"{name}.bias")

    def count(self, pattern: str) -> int:
        """Return how many names there are if {} is replaced by 0, 1, and so on."""
        n = 0
        while any(name.startswith(pattern.format(n)) for name in self.tensors):
            n += 1
        return n

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, *self.both(name))

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self.both(name))

    def group_norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, GROUPS, *self.both(name))

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        mean, variance = self(f"{name}.running_mean"), self(f"{name}.running_var")
        return F.batch_norm(x, mean, variance, *self.both(name), eps=1e-5)


def forward(
    w: Official, images: Tensor, window: int | None = None, heads: tuple[int, ...] = ()
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the class logits and the mask logits of every prediction.

    Args:
        w: The weights.
        images: Normalized images [B, 3, H, W].
        window: Window size of a Swin; None for a ResNet.
        heads: Number of heads of each stage of a Swin.
    """
    features = resnet(w, images) if window is None else swin(w, images, window, heads)
    memory, mask_features = pixel_decoder(w, features)
    return predictor(w, memory, mask_features)


def resnet(w: Official, x: Tensor) -> list[Tensor]:
    """Return the maps res2 to res5; the stride of a block is in its 3x3 convolution."""

    def conv(name: str, x: Tensor, **options) -> Tensor:
        return w.batch_norm(f"{name}.norm", F.conv2d(x, w(f"{name}.weight"), **options))

    x = conv("backbone.stem.conv1", x, stride=2, padding=3).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    features = []
    for stage in range(2, 6):
        for i in range(w.count(f"backbone.res{stage}.{{}}.")):
            block = f"backbone.res{stage}.{i}"
            stride = 2 if stage > 2 and i == 0 else 1
            y = conv(f"{block}.conv1", x).relu()
            y = conv(f"{block}.conv2", y, stride=stride, padding=1).relu()
            y = conv(f"{block}.conv3", y)
            x = (y + (conv(f"{block}.shortcut", x, stride=stride) if i == 0 else x)).relu()
        features.append(x)
    return features


def swin(w: Official, x: Tensor, window: int, heads: tuple[int, ...]) -> list[Tensor]:
    """Return the normalized maps of the four stages: [B, C, H/s, W/s] for s = 4 to 32."""
    x = F.conv2d(x, *w.both("backbone.patch_embed.proj"), stride=4).permute(0, 2, 3, 1)
    x = w.layer_norm("backbone.patch_embed.norm", x)  # [B, H, W, C]
    features = []
    for stage in range(4):
        layer = f"backbone.layers.{stage}"
        for i in range(w.count(f"{layer}.blocks.{{}}.")):
            block, shift = f"{layer}.blocks.{i}", window // 2 * (i % 2)
            y = w.layer_norm(f"{block}.norm1", x)
            x = x + window_attention(w, f"{block}.attn", y, window, heads[stage], shift)
            y = w.layer_norm(f"{block}.norm2", x)
            x = x + w.linear(f"{block}.mlp.fc2", F.gelu(w.linear(f"{block}.mlp.fc1", y)))
        features.append(w.layer_norm(f"backbone.norm{stage}", x).permute(0, 3, 1, 2))
        if stage < 3:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
            x = w.layer_norm(f"{layer}.downsample.norm", torch.cat(corners, 3))
            x = F.linear(x, w(f"{layer}.downsample.reduction.weight"))
    return features


def window_attention(
    w: Official, name: str, x: Tensor, size: int, heads: int, shift: int
) -> Tensor:
    """Return self-attention within the windows of x [B, H, W, C].

    Padding is attended to, and windows are shifted even if the map has only one.
    """
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
    rows, columns = x.shape[1:3]
    region = torch.zeros(1, rows, columns, 1, dtype=x.dtype)
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
        cuts = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
        for number, (r, c) in enumerate((r, c) for r in cuts for c in cuts):
            region[:, r, c] = number

    def windows(x: Tensor) -> Tensor:  # [B·n, size², C]
        x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3)
        return x.flatten(3, 4).flatten(0, 2)

    y, part = windows(x), windows(region)
    q, k, v = w.linear(f"{name}.qkv", y).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    scores = q * q.shape[-1] ** -0.5 @ k.mT  # [B·n, heads, size², size²]
    pixel = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    offset = pixel[:, None] - pixel + size - 1
    index = offset[..., 0] * (2 * size - 1) + offset[..., 1]
    scores = scores + w(f"{name}.relative_position_bias_table")[index].permute(2, 0, 1)
    apart = (part != part.mT) * -100.0  # [n, size², size²]
    scores = scores + apart.repeat(len(scores) // len(apart), 1, 1)[:, None]
    y = (scores.softmax(3) @ v).transpose(1, 2).flatten(2)
    y = w.linear(f"{name}.proj", y).unflatten(1, (size, size))
    y = y.unflatten(0, (-1, rows // size, columns // size)).transpose(2, 3)
    y = y.flatten(3, 4).flatten(1, 2)
    return y.roll((shift, shift), (1, 2))[:, :height, :width]


def sine(height: int, width: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Return the encoding [H·W, dim] of y, then of x, with sine and cosine interleaved."""
    half = dim // 2
    frequency = [10000 ** (2 * (j // 2) / half) for j in range(half)]
    rows = []
    for y in range(1, height + 1):
        for x in range(1, width + 1):
            row = []
            for position, size in ((y, height), (x, width)):
                angle = position / (size + 1e-6) * 2 * math.pi
                row += [
                    (math.cos if j % 2 else math.sin)(angle / f) for j, f in enumerate(frequency)
                ]
            rows.append(row)
    return torch.tensor(rows, dtype=dtype)


def pixel_decoder(w: Official, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return the memory of strides 32, 16, and 8, and the mask features of stride 4."""
    head = "sem_seg_head.pixel_decoder"
    maps = []
    for i, x in enumerate(features[:0:-1]):
        x = F.conv2d(x, *w.both(f"{head}.input_proj.{i}.0"))
        maps.append(w.group_norm(f"{head}.input_proj.{i}.1", x))
    sizes = [tuple(x.shape[2:]) for x in maps]
    dim, dtype = maps[0].shape[1], maps[0].dtype
    source = torch.cat([x.flatten(2).mT for x in maps], 1)
    embeds = w(f"{head}.transformer.level_embed")
    position = torch.cat(
        [sine(*size, dim, dtype) + embed for size, embed in zip(sizes, embeds, strict=True)]
    )
    for i in range(w.count(f"{head}.transformer.encoder.layers.{{}}.")):
        layer = f"{head}.transformer.encoder.layers.{i}"
        y = deformable(w, f"{layer}.self_attn", source + position, source, sizes)
        source = w.layer_norm(f"{layer}.norm1", source + y)
        y = w.linear(f"{layer}.linear2", w.linear(f"{layer}.linear1", source).relu())
        source = w.layer_norm(f"{layer}.norm2", source + y)
    parts = source.mT.split([h * w_ for h, w_ in sizes], 2)
    memory = [x.unflatten(2, size) for x, size in zip(parts, sizes, strict=True)]
    fine = F.conv2d(features[0], w(f"{head}.adapter_1.weight"))
    fine = w.group_norm(f"{head}.adapter_1.norm", fine)
    fine = fine + F.interpolate(memory[-1], fine.shape[2:], mode="bilinear", align_corners=False)
    fine = F.conv2d(fine, w(f"{head}.layer_1.weight"), padding=1)
    fine = w.group_norm(f"{head}.layer_1.norm", fine).relu()
    return memory, F.conv2d(fine, *w.both(f"{head}.mask_features"))


def deformable(
    w: Official, name: str, query: Tensor, source: Tensor, sizes: list[tuple[int, int]]
) -> Tensor:
    """Return deformable attention; the offsets of samples are in pixels of their level."""
    batch, tokens = source.shape[:2]
    value = w.linear(f"{name}.value_proj", source).unflatten(2, (HEADS, -1))
    offsets = w.linear(f"{name}.sampling_offsets", query)
    offsets = offsets.view(batch, tokens, HEADS, LEVELS, POINTS, 2)
    weights = w.linear(f"{name}.attention_weights", query).view(batch, tokens, HEADS, -1)
    weights = weights.softmax(3).view(batch, tokens, HEADS, LEVELS, POINTS)
    centers = [
        ((x + 0.5) / width, (y + 0.5) / height)
        for height, width in sizes
        for y in range(height)
        for x in range(width)
    ]
    centers = torch.tensor(centers, dtype=source.dtype)
    result = 0
    for level, (part, (height, width)) in enumerate(
        zip(value.split([h * w_ for h, w_ in sizes], 1), sizes, strict=True)
    ):
        image = part.permute(0, 2, 3, 1).reshape(batch * HEADS, -1, height, width)
        step = offsets[:, :, :, level] / torch.tensor((width, height), dtype=source.dtype)
        samples = 2 * (centers[:, None, None] + step) - 1  # [B, tokens, HEADS, POINTS, 2]
        grid = samples.transpose(1, 2).flatten(0, 1)
        seen = F.grid_sample(image, grid, align_corners=False)  # [B·HEADS, C, tokens, POINTS]
        seen = (
            seen.unflatten(0, (batch, HEADS)) * weights[:, :, :, level].transpose(1, 2)[:, :, None]
        )
        result = result + seen.sum(-1)
    return w.linear(f"{name}.output_proj", result.permute(0, 3, 1, 2).flatten(2))


def predictor(
    w: Official, memory: list[Tensor], mask_features: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Return class logits [B, Q, K + 1] and mask logits [B, Q, H/4, W/4] of every prediction.

    The first prediction is made before the first layer.
    """
    head = "sem_seg_head.predictor"
    batch, dim, dtype = len(mask_features), mask_features.shape[1], mask_features.dtype
    values = [
        x.flatten(2).permute(2, 0, 1) + embed
        for x, embed in zip(memory, w(f"{head}.level_embed.weight"), strict=True)
    ]
    sines = [sine(*x.shape[2:], dim, dtype)[:, None] for x in memory]
    position = w(f"{head}.query_embed.weight")[:, None]
    x = w(f"{head}.query_feat.weight")[:, None].expand(-1, batch, -1)  # [Q, B, C]
    classes, masks = [], []

    def predict(x: Tensor, size: torch.Size) -> Tensor:
        y = w.layer_norm(f"{head}.decoder_norm", x).transpose(0, 1)
        classes.append(w.linear(f"{head}.class_embed", y))
        for i in range(3):
            y = w.linear(f"{head}.mask_embed.layers.{i}", y)
            y = y.relu() if i < 2 else y
        masks.append(torch.einsum("bqc,bchw->bqhw", y, mask_features))
        small = F.interpolate(masks[-1], size, mode="bilinear", align_corners=False)
        forbidden = small.sigmoid().flatten(2) < 0.5
        return forbidden & ~forbidden.all(2, keepdim=True)

    def attend(name: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return F.multi_head_attention_forward(
            query, key, value, dim, HEADS,
            w(f"{name}.in_proj_weight"), w(f"{name}.in_proj_bias"), None, None, False, 0.0,
            *w.both(f"{name}.out_proj"), attn_mask=mask, need_weights=False,
        )[0]  # fmt: skip

    forbidden = predict(x, memory[0].shape[2:])
    for i in range(w.count(f"{head}.transformer_ffn_layers.{{}}.")):
        level = i % LEVELS
        layer = f"{head}.transformer_cross_attention_layers.{i}"
        mask = forbidden.repeat_interleave(HEADS, 0)
        key = values[level] + sines[level]
        y = attend(f"{layer}.multihead_attn", x + position, key, values[level], mask)
        x = w.layer_norm(f"{layer}.norm", x + y)
        layer = f"{head}.transformer_self_attention_layers.{i}"
        y = attend(f"{layer}.self_attn", x + position, x + position, x, None)
        x = w.layer_norm(f"{layer}.norm", x + y)
        layer = f"{head}.transformer_ffn_layers.{i}"
        y = w.linear(f"{layer}.linear2", w.linear(f"{layer}.linear1", x).relu())
        x = w.layer_norm(f"{layer}.norm", x + y)
        forbidden = predict(x, memory[(i + 1) % LEVELS].shape[2:])
    return classes, masks
