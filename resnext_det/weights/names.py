"""What a tensor is called: by other programs, and inside the models that use it.

A classification file says ``stem.*``, ``res2.*`` .. ``res5.*``, ``linear.*``. The same
tensors stand under ``backbone.`` (C4), ``backbone.bottom_up.`` (FPN) or ``roi_heads.``
(res5 of C4), and in the joined detector under ``rpn.`` or ``fast_rcnn.`` before that.

Other programs' names come from one table, for both directions. They are those of the code that
builds the layers: torchvision's ``models/resnet.py`` (timm's are the same), Detectron's
``modeling/ResNet.py`` (Caffe2) and Detectron2's ``BottleneckBlock``, whose names are ours.
"""

import re
from collections.abc import Iterator

from .norms import COUNTER

NETWORKS = ("rpn.", "fast_rcnn.")
PLACES = ("backbone.bottom_up.", "backbone.", "roi_heads.")
OWN = "trunk."  # of `classification.Classifier`
TRUNK_PARTS = ("stem.", "res2.", "res3.", "res4.", "res5.")

BLOCKS = 50  # of a stage; the deepest network has 36
# Of a block: ours, torchvision's convolution and norm, Caffe2's.
LAYERS = (
    ("conv1", "conv1", "bn1", "branch2a"),
    ("conv2", "conv2", "bn2", "branch2b"),
    ("conv3", "conv3", "bn3", "branch2c"),
    ("shortcut", "downsample.0", "downsample.1", "branch1"),
)
# Of a norm and of any other module, with Caffe2's spellings.
NORM_FIELDS = {
    "weight": ("s", "gamma"),
    "bias": ("b", "beta"),
    "running_mean": ("rm", "running_mean"),
    "running_var": ("riv", "running_var"),  # riv too is the variance, not its inverse
    COUNTER: (),
}
FIELDS = {"weight": ("w",), "bias": ("b",)}


def _modules() -> Iterator[tuple[str, str, str]]:
    """Every module's three names: ours, torchvision's, Caffe2's."""
    yield "stem.conv1", "conv1", "conv1"
    yield "stem.conv1.norm", "bn1", "res_conv1_bn"
    for number in (2, 3, 4, 5):
        for block in range(BLOCKS):
            ours, layer = f"res{number}.{block}", f"layer{number - 1}.{block}"
            for place, conv, norm, branch in LAYERS:
                blob = f"res{number}_{block}_{branch}"
                yield f"{ours}.{place}", f"{layer}.{conv}", blob
                yield f"{ours}.{place}.norm", f"{layer}.{norm}", f"{blob}_bn"
    yield "linear", "fc", "pred"


def _tensors() -> Iterator[tuple[str, str, list[str]]]:
    for ours, torchvision, blob in _modules():
        for field, endings in (NORM_FIELDS if ours.endswith("norm") else FIELDS).items():
            yield f"{ours}.{field}", f"{torchvision}.{field}", [f"{blob}_{e}" for e in endings]


TORCHVISION, CAFFE2 = {}, {}  # by our name; Caffe2's spellings in a list
for _ours, _torchvision, _blobs in _tensors():
    TORCHVISION[_ours], CAFFE2[_ours] = _torchvision, _blobs
OURS_OF_TORCHVISION = {theirs: ours for ours, theirs in TORCHVISION.items()}
OURS_OF_CAFFE2 = {blob: ours for ours, blobs in CAFFE2.items() for blob in blobs}
# The head is called after its classes in some files: fc1000_w (MSRA), last_out_L1000_w.
CAFFE2_HEAD = re.compile(r"^(fc|last_out_L)[0-9]{3,6}(?=_[wb]$)")


def from_torchvision(key: str) -> str | None:
    """torchvision's or timm's name in ours; None if the table has no such tensor.

    MMClassification and MMPretrain put "backbone." before these names, and "head." before "fc.".

    >>> from_torchvision("layer1.0.downsample.1.running_var")
    'res2.0.shortcut.norm.running_var'
    """
    return OURS_OF_TORCHVISION.get(re.sub(r"^(backbone\.|head\.(?=fc\.))", "", key))


def to_torchvision(name: str) -> str | None:
    """Our name in torchvision's and timm's; None if the table has no such tensor."""
    return TORCHVISION.get(name)


def from_detectron2(key: str) -> str | None:
    """The name in a Detectron2 classification file in ours: without prefix, the head as "linear".

    Checkpoints of this package's own classification runs have these names behind "trunk.".

    >>> from_detectron2("backbone.bottom_up.res2.0.conv1.weight")
    'res2.0.conv1.weight'
    """
    name = _without_prefix(key, (*PLACES[:2], OWN)) or key
    # Detectron2's converter puts "stem." before all of torchvision's that is in no layer.
    name = re.sub(r"^stem\.fc\.", "linear.", name)
    return name if name in TORCHVISION else None


def from_caffe2(key: str) -> str | None:
    """A Caffe2 blob's name in ours; None if the table has no such tensor.

    >>> from_caffe2("res2_0_branch2a_bn_riv")
    'res2.0.conv1.norm.running_var'
    """
    return OURS_OF_CAFFE2.get(CAFFE2_HEAD.sub("pred", key))


def to_caffe2(name: str) -> str | None:
    """Our name in Caffe2's; None if Caffe2 has no such blob, as for num_batches_tracked."""
    return next(iter(CAFFE2.get(name, ())), None)


def _without_prefix(key: str, prefixes: tuple[str, ...]) -> str | None:
    for prefix in prefixes:
        if key.startswith(prefix):
            return key[len(prefix) :]
    return None


def trunk_name(key: str) -> str | None:
    """A model's key as the classification file names it, or None if it is no trunk tensor.

    >>> trunk_name("fast_rcnn.roi_heads.res5.0.conv1.weight")
    'res5.0.conv1.weight'
    """
    rest = _without_prefix(key, NETWORKS) or key
    rest = _without_prefix(rest, PLACES)
    return rest if rest is not None and rest.startswith(TRUNK_PARTS) else None
