"""The choice between implementations, and the whole network with each of them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cudnn

from model import kernels
from model.criterion import Criterion, CriterionSettings, normalizers
from model.mask2former import Mask2Former
from model.segment import ImagePrediction, SegmentSettings, instances, panoptic, semantic
from tests.model.samples import boxes, keyed_draw, tiny_settings
from tests.parity.samples import randomize

CPU, META = torch.device("cpu"), torch.device("meta")
# The implementations for this device, and each implementation with references for the others.
CHOICES = [
    "",
    *(
        f"reference,{operation}={name}"
        for operation, implementations in kernels.OPERATIONS.items()
        for name, runs_on in implementations.items()
        if runs_on(CPU) and name != kernels.REFERENCE
    ),
]


def step(device: torch.device = CPU) -> dict[str, Tensor]:
    """Return every loss of a small network and the gradient of every parameter."""
    torch.manual_seed(0)
    net = Mask2Former(tiny_settings(checkpoint_activations=True), num_classes=5)
    randomize(
        net
    )  # bilinear sampling has two slopes at the initial locations, the centers of pixels
    net = net.to(device)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).to(device)
    targets = boxes((64, 96), [3, 1], classes=5)
    targets = type(targets)(*(x.to(device) for x in targets))
    settings = CriterionSettings(points=256)
    on_cpu = keyed_draw()
    terms = Criterion(settings)(
        net(images),
        targets,
        lambda image, purpose, shape: on_cpu(image, purpose, shape).to(device),
        normalizers(targets.categories, 16, settings),
    )
    torch.stack(list(terms.values())).sum().backward()
    return terms | {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Check that every tensor agrees relative to its norm, or to 1e-3 of the largest norm."""
    assert found.keys() == wanted.keys()
    least = 1e-3 * max(x.norm() for x in wanted.values())
    for name, tensor in wanted.items():
        assert (found[name] - tensor).norm() <= tolerance * max(tensor.norm(), least), name


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with kernels.use("reference"):
        return step()


@pytest.mark.parametrize("choice", CHOICES)
def test_the_network_is_the_same_with_every_implementation(
    choice: str, reference: dict[str, Tensor]
) -> None:
    """Losses and gradients in float32 agree to 2e-5; the measured difference is 2e-6."""
    with kernels.use(choice):
        assert_near(step(), reference, 2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "choice",
    [
        "",
        "reference",
        "reference,deformable_self_attention=triton",
        "reference,sample_rows=triton",
    ],
)
def test_a_gpu_agrees_with_the_reference_on_a_cpu(
    choice: str, reference: dict[str, Tensor]
) -> None:
    """Losses and gradients agree to 1e-3 in float32."""
    with kernels.use(choice), cudnn.flags(enabled=True, allow_tf32=False):
        found = {name: x.cpu() for name, x in step(torch.device("cuda")).items()}
    assert_near(found, reference, 1e-3)


def segmentations() -> tuple[Tensor, list[dict], dict, Tensor]:
    """Return the three segmentations of one random prediction."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    features = F.interpolate(draw(1, 6, 3, 3), (8, 16), mode="bicubic")[0]  # blobs
    prediction = ImagePrediction(5 * draw(20, 5), 2 * draw(20, 6), features, (30, 51), (23, 60))
    settings = SegmentSettings(object_threshold=0.4, overlap_threshold=0.2)
    things = (True, True, False, False)
    found = instances(prediction, things, settings)
    return *panoptic(prediction, things, settings), found, semantic(prediction)


@pytest.mark.parametrize("choice", CHOICES)
def test_segmentations_are_the_same_with_every_implementation(choice: str) -> None:
    """Maps are equal; scores agree to 1e-9 in float64."""
    with kernels.use("reference"):
        wanted = segmentations()
    with kernels.use(choice):
        found = segmentations()
    assert torch.equal(found[0], wanted[0])
    assert found[1] == wanted[1]
    assert len(wanted[1]) >= 3
    torch.testing.assert_close(found[2]["scores"], wanted[2]["scores"], rtol=1e-9, atol=0)
    for mask, expected in zip(found[2]["masks"], wanted[2]["masks"], strict=True):
        assert torch.equal(mask, expected)
    assert torch.equal(found[3], wanted[3])


def test_the_device_decides_unless_an_implementation_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    assert kernels.implementation("deformable_attention", CPU) == "cpu"
    assert kernels.implementation("deformable_attention", META) == "reference"
    assert kernels.implementation("token_linear", CPU) == "onednn"
    monkeypatch.setenv(kernels.VARIABLE, "token_linear=reference")
    assert kernels.implementation("token_linear", CPU) == "reference"
    assert kernels.implementation("deformable_attention", CPU) == "cpu"
    with kernels.use("reference"):
        assert set(kernels.choices()) == set(kernels.OPERATIONS)
        assert kernels.implementation("deformable_attention", CPU) == "reference"
        with kernels.use(""):
            assert kernels.implementation("token_linear", CPU) == "onednn"
    assert kernels.implementation("token_linear", CPU) == "reference"


@pytest.mark.parametrize(
    "text", ["refrence", "token_linear=triton", "linear=reference", "=", "cpu"]
)
def test_unknown_implementations_are_refused_with_the_known_ones(text: str) -> None:
    known = r"known: reference, deformable_attention=cpu, .*token_linear=onednn"
    with pytest.raises(ValueError, match=rf"M2F_KERNELS={text}: .* is unknown; {known}"):
        kernels.use(text).__enter__()


def test_a_network_is_not_built_with_an_unknown_implementation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"M2F_KERNELS=fast: fast is unknown"):
        Mask2Former(tiny_settings(), num_classes=5)


def test_an_implementation_for_another_device_is_refused() -> None:
    with (
        kernels.use("deformable_self_attention=triton"),
        pytest.raises(ValueError, match=r"deformable_self_attention=triton does not run on cpu"),
    ):
        step()


def test_importing_the_network_imports_no_triton() -> None:
    """Triton is missing on machines without a GPU."""
    script = "import sys, model.mask2former; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "model.kernels.deformable_cpu" in done.stdout
    assert "model.kernels.deformable_triton" not in done.stdout
