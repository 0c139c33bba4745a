"""Guard that shapes alone tell the architecture, and that nothing else is taken for one."""

import pytest
import torch

from resnext_det.errors import InputError
from resnext_det.models import Architecture, build_resnext
from resnext_det.weights.layout import architecture_from, check_layout
from resnext_det.weights.names import to_torchvision


def shapes(name="X14_4x8d_w0.125", num_classes=5):
    with torch.device("meta"):
        architecture = Architecture.from_name(name)
        return build_resnext(**architecture.as_dict(), num_classes=num_classes).state_dict()


MEMBERS = [
    "R50_1x64d",
    "X50_32x4d",
    "X50_2x40d",
    "X50_8x14d",
    "X101_64x4d",
    "X101_32x8d",
    "R101_1x100d",
    "X152_32x8d",
    "R50_1x128d",  # Wide ResNet-50-2
    "R26_1x64d_w0.5",
    "X14_8x8d_w0.125",
    "X50_32x4d_w2",
    "R50_1x64d_noshortcut",
    "R200_1x64d",
    "X200_32x4d",
    "X29_8x64d",
    "R20_1x64d_w0.25",
]


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("num_classes", [1000, None])
def test_every_member(name, num_classes):
    tensors = shapes(name, num_classes)
    assert architecture_from(tensors, False, "x.pth").name == name
    without = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    assert architecture_from(without, False, "x.pth").name == name


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_the_strides_place_is_told(stride_in_1x1):
    found = architecture_from(shapes(), stride_in_1x1, "x.pth")
    assert found.stride_in_1x1 is stride_in_1x1


def refused(tensors, *words, spelled=str):
    with pytest.raises(InputError) as caught:
        architecture_from(tensors, False, "x.pth", spelled)
    assert str(caught.value).startswith("x.pth: ") and "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_every_missing_tensor_is_missed():
    whole = shapes()
    for name in whole:
        if not name.endswith("num_batches_tracked"):
            named = "linear.bias" if name == "linear.weight" else name  # then left over
            refused({k: v for k, v in whole.items() if k != name}, named)


def test_every_other_shape_is_seen():
    """One more channel, in any tensor."""
    whole = shapes()
    for name, tensor in whole.items():
        sizes = (tensor.shape[0] + 1, *tensor.shape[1:]) if tensor.dim() else (1,)
        if name == "linear.weight":
            sizes = (tensor.shape[0], tensor.shape[1] + 1)
        refused({**whole, name: torch.zeros(sizes, device="meta")})


def test_a_tensor_and_both_shapes_are_named():
    wrong = {**shapes(), "res3.0.conv2.weight": torch.zeros(64, 4, 3, 3)}
    refused(wrong, "res3.0.conv2.weight has shape (64, 4, 3, 3)", "X14_4x8d_w0.125", "(8, 2, 3, 3)")


def test_in_the_files_own_spelling():
    wrong = {**shapes(), "res3.0.conv2.weight": torch.zeros(64, 4, 3, 3)}
    refused(wrong, "layer2.0.conv2.weight has shape", spelled=to_torchvision)
    wrong = shapes()
    del wrong["res4.0.shortcut.norm.running_var"]
    refused(wrong, "lacks layer3.0.downsample.1.running_var", spelled=to_torchvision)


@pytest.mark.parametrize(
    "more", ["res5.0.se.fc1.weight", "stem.conv1.bias", "res2.0.conv2.bias", "backbone.weight"]
)
def test_left_over(more):
    refused({**shapes(), more: torch.zeros(3)}, "holds, beyond its architecture,", more)


def test_no_depth():
    more = shapes("R26_1x64d_w0.125")
    blocks = {k: v for k, v in more.items() if not k.startswith("res3.1.")}
    refused(blocks, "2, 1, 2, 2 blocks in its stages, which no depth has", "50, 101")


def test_a_gap_among_the_blocks():
    moved = {k.replace("res3.1.", "res3.2."): v for k, v in shapes("R26_1x64d_w0.125").items()}
    refused(moved, "res3.1.")


@pytest.mark.parametrize(
    "changed",
    [
        {"stem.conv1.weight": (0, 3, 7, 7)},
        {"stem.conv1.weight": (64,)},
        {"stem.conv1.weight": (7, 3, 7, 7)},
        {"stem.conv1.weight": (8, 4, 7, 7)},
        {"res2.0.conv2.weight": (4, 0, 3, 3)},
        {"res2.0.conv2.weight": (4, 3, 3, 3)},
        {"res2.0.conv2.weight": (4, 1)},
        {"res2.0.conv2.weight": ()},
        {"res2.0.conv2.weight": (2**40, 1, 3, 3)},
        {"linear.weight": (0, 256)},
        {"linear.weight": ()},
        {"linear.weight": (5, 256, 1, 1)},
        {"linear.bias": (6,)},
    ],
    ids=str,
)
def test_shapes_that_are_no_network(changed):
    tensors = shapes()
    for name, sizes in changed.items():
        tensors[name] = torch.empty(sizes, device="meta")
    refused(tensors)


@pytest.mark.parametrize("name", ["stem.conv1.weight", "res2.0.conv2.weight"])
def test_the_first_ones_are_named(name):
    tensors = shapes()
    del tensors[name]
    refused(tensors, f"has no {name}")
    refused({}, "has no stem.conv1.weight")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_whole_numbers_are_no_weights(dtype):
    name = "res4.0.conv3.weight"
    tensors = {**shapes()}
    tensors[name] = tensors[name].to(dtype)
    refused(tensors, name, str(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are(dtype):
    tensors = {k: v.to(dtype) for k, v in shapes().items()}
    assert architecture_from(tensors, False, "x.pth").name == "X14_4x8d_w0.125"


def test_check_layout_compares_with_what_is_claimed():
    """X50 at 32 x 4d and at 16 x 8d have convolutions of equal outputs."""
    check_layout(shapes("X14_4x8d_w0.125"), Architecture.from_name("X14_4x8d_w0.125"), "x.pth")
    with pytest.raises(InputError, match=r"res2.0.conv2.weight has shape \(4, 1, 3, 3\)"):
        check_layout(shapes("X14_4x8d_w0.125"), Architecture.from_name("X14_2x16d_w0.125"), "x.pth")
