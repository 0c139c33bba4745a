"""The names and numbers of one member of the family: depth, C x d, and what follows from them."""

import re
from dataclasses import asdict, dataclass

from ..errors import InputError

# Bottleneck blocks in res2..res5. 50, 101 and 152 are the paper's (Table 1; He et al. 2016);
# 14 and 26 are the same family with 1 and 2 blocks a stage, for machines without a GPU.
# 200 has pre-activation blocks (He et al., ECCV 2016; fb.resnet.torch, models/preresnet.lua).
IMAGENET_BLOCKS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
# Blocks in res2..res4: depth = 9 n + 2 (paper, Appendix A, which trains 29); 11 is for laptops.
CIFAR_BLOCKS = {11: (1, 1, 1), 20: (2, 2, 2), 29: (3, 3, 3), 38: (4, 4, 4), 56: (6, 6, 6)}
BLOCKS_PER_STAGE = IMAGENET_BLOCKS | CIFAR_BLOCKS
PREACTIVATION_DEPTHS = (200,)
STEM_CHANNELS, RES2_CHANNELS = 64, 256
LARGEST = 65536  # bound of C and of d, far above any network that fits a machine

VALID_DEPTHS = (
    f"{', '.join(map(str, IMAGENET_BLOCKS))} (ImageNet) or "
    f"{', '.join(map(str, CIFAR_BLOCKS))} (CIFAR)"
)
# The fields, in order: the config key and the type of each.
FIELDS = {
    "depth": ("DEPTH", int, "a whole number"),
    "cardinality": ("NUM_GROUPS", int, "a whole number"),
    "bottleneck_width": ("WIDTH_PER_GROUP", int, "a whole number"),
    "width_multiplier": ("WIDTH_MULTIPLIER", (int, float), "a number"),
    "stride_in_1x1": ("STRIDE_IN_1X1", bool, "true or false"),
    "shortcut": ("SHORTCUT", bool, "true or false"),
}
NAME = re.compile(
    r"[RX](?P<depth>[0-9]{1,9})_(?P<cardinality>[0-9]{1,9})x(?P<bottleneck_width>[0-9]{1,9})d"
    r"(_w(?P<width_multiplier>[0-9]{1,9}(\.[0-9]{1,30})?))?"
    r"(?P<stride_in_1x1>_stride1x1)?(?P<no_shortcut>_noshortcut)?"
)
# "resnet50", "resnext101_32x8d", "resnext50_32x4d.a1_in1k"
ELSEWHERE = re.compile(r"resnex?t(?P<depth>[0-9]{2,3})(_(?P<C>[0-9]{1,3})x(?P<d>[0-9]{1,3})d)?\b")


@dataclass(frozen=True)
class Architecture:
    """One member of the family.

    Args:
        depth: number of layers, a key of ``BLOCKS_PER_STAGE``. 200 has pre-activation blocks,
            of which there is one form only (Fig. 3's forms a and b are of the paper's own block);
            11, 20, 29, 38 and 56 are the three-stage networks for CIFAR's 32 x 32 images.
        cardinality: C, the number of paths of a block (paper, Sec. 3.3); 1 is a ResNet.
        bottleneck_width: d, channels of one path in res2; doubles at each stage (Table 2).
        width_multiplier: scales the stem's, the blocks' and the bottlenecks' channels.
        stride_in_1x1: the stride of a stage's first block sits in the 1x1 (MSRA's ResNets)
            instead of the 3x3 (the paper's).
        shortcut: False leaves identities and projections out (paper, Sec. 5.1).

    Raises:
        InputError: unknown depth, a value of another type, numbers that give no whole number
            of channels, or a pre-activation network with its stride in the 1x1 or without
            shortcuts (the sources have neither).
    """

    depth: int = 50
    cardinality: int = 32
    bottleneck_width: int = 4
    width_multiplier: float = 1.0
    stride_in_1x1: bool = False
    shortcut: bool = True

    def __post_init__(self):
        self._check_types()
        if self.depth not in BLOCKS_PER_STAGE:
            raise _error(f"DEPTH is {self.depth}", f"choose one of {VALID_DEPTHS}")
        if not (1 <= self.cardinality <= LARGEST and 1 <= self.bottleneck_width <= LARGEST):
            raise _error(
                f"NUM_GROUPS x WIDTH_PER_GROUP is {self.cardinality} x {self.bottleneck_width}",
                f"set both to 1 or more, {LARGEST} at most",
            )
        self._check_widths()
        if self.is_preactivation and self.stride_in_1x1:
            raise _error(
                f"STRIDE_IN_1X1 is True at DEPTH {self.depth} (pre-activation)",
                "set STRIDE_IN_1X1 False",
            )
        if self.is_preactivation and not self.shortcut:
            raise _error(
                f"SHORTCUT is False at DEPTH {self.depth} (pre-activation)", "set SHORTCUT True"
            )

    def _check_types(self) -> None:
        for field, (key, wanted, words) in FIELDS.items():
            value = getattr(self, field)
            # True is an int to Python, and a JSON record may hold anything.
            if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
                raise _error(f"{key} is {value!r}", f"give {words}")

    def _check_widths(self) -> None:
        for name, channels in (
            ("WIDTH_PER_GROUP", self.bottleneck_width),
            ("the stem's width", STEM_CHANNELS),
            ("res2's width", RES2_CHANNELS),
        ):
            scaled = channels * self.width_multiplier
            # The bounds come first: neither inf nor nan is turned into an int.
            if not 1 <= scaled <= LARGEST**2 or scaled != int(scaled):
                raise _error(
                    f"WIDTH_MULTIPLIER {self.width_multiplier} times {name} {channels} is {scaled}",
                    "choose numbers whose product is a whole number, 1 or more",
                )

    @classmethod
    def from_name(cls, name: str) -> "Architecture":
        """The member that ``name`` prints as: "X50_32x4d", "R200_1x64d", "X29_8x64d_w0.25".

        Raises:
            InputError: the name is malformed, is not spelled as the ``name`` property spells
                it (R exactly when C is 1), or names no member.
        """
        found = NAME.fullmatch(name) if isinstance(name, str) else None
        if found is None:
            raise InputError(
                "architecture name",
                f"{name!r:.40} is not of the form <R or X><depth>_<C>x<d>d",
                _nearest_form(name),
            )
        try:
            member = cls(
                depth=int(found["depth"]),
                cardinality=int(found["cardinality"]),
                bottleneck_width=int(found["bottleneck_width"]),
                width_multiplier=float(found["width_multiplier"] or 1.0),
                stride_in_1x1=found["stride_in_1x1"] is not None,
                shortcut=found["no_shortcut"] is None,
            )
        except InputError as error:
            raise InputError("architecture name", f'"{name}": {error.found}', error.mend) from error
        if member.name != name:
            raise InputError("architecture name", f'found "{name}"', f'write "{member.name}"')
        return member

    @property
    def name(self) -> str:
        """For instance "X50_32x4d", "R50_1x64d", "X14_8x8d_w0.5"; `from_name` reads it back."""
        letter = "R" if self.cardinality == 1 else "X"
        width = float(self.width_multiplier)
        return (
            f"{letter}{self.depth}_{self.cardinality}x{self.bottleneck_width}d"
            + ("" if width == 1 else f"_w{int(width) if width.is_integer() else repr(width)}")
            + "_stride1x1" * self.stride_in_1x1
            + "_noshortcut" * (not self.shortcut)
        )

    @property
    def is_cifar(self) -> bool:
        """Three stages behind a 3x3 stem of stride 1, for 32 x 32 images (Appendix A)."""
        return self.depth in CIFAR_BLOCKS

    @property
    def has_res5(self) -> bool:
        """Four stages, as Detectron2's heads and pyramids expect them; not so for CIFAR."""
        return 5 in self.stages

    @property
    def is_preactivation(self) -> bool:
        """Norm and ReLU before the convolutions (He et al., ECCV 2016)."""
        return self.depth in PREACTIVATION_DEPTHS

    @property
    def stages(self) -> tuple[int, ...]:
        """The numbers of res2..res5: (2, 3, 4, 5), or (2, 3, 4) for CIFAR."""
        return tuple(range(2, 2 + len(self.blocks_per_stage)))

    @property
    def blocks_per_stage(self) -> tuple[int, ...]:
        """Residual blocks in each of ``stages``."""
        return BLOCKS_PER_STAGE[self.depth]

    @property
    def stem_stride(self) -> int:
        """4 (7x7 of stride 2, max pooling of stride 2; Table 1), or CIFAR's 1."""
        return 1 if self.is_cifar else 4

    @property
    def stride(self) -> int:
        """Pixels of the image from one cell of the last stage to the next: 32, or CIFAR's 4."""
        return self.stem_stride * 2 ** (len(self.stages) - 1)

    @property
    def stem_channels(self) -> int:
        """Output channels of the stem: 64 at width 1."""
        return int(STEM_CHANNELS * self.width_multiplier)

    def out_channels(self, stage: int) -> int:
        """Output channels of res2..res5 (``stage`` 2..5): 256, 512, 1024, 2048 at width 1."""
        return int(RES2_CHANNELS * self.width_multiplier) * 2 ** self._steps(stage)

    def bottleneck_channels(self, stage: int) -> int:
        """C * d of a stage, the 3x3's channels (Table 2, "width of group conv.")."""
        width = int(self.bottleneck_width * self.width_multiplier)
        return self.cardinality * width * 2 ** self._steps(stage)

    def _steps(self, stage: int) -> int:
        """How often channels have doubled since res2."""
        if stage not in self.stages:
            names = ", ".join(f"res{number}" for number in self.stages)
            raise _error(f"{self.name} has no res{stage}", f"name one of {names}")
        return stage - 2

    def as_dict(self) -> dict:
        """The fields as ``Architecture(**...)`` takes them; travels in a weights file."""
        return asdict(self)


def _nearest_form(name: object) -> str:
    """What to write: torchvision's and timm's names are known by their numbers."""
    elsewhere = ELSEWHERE.match(name) if isinstance(name, str) else None
    if elsewhere:
        usual = ("32", "4") if elsewhere[0].startswith("resnext") else ("1", "64")
        cardinality, width = elsewhere["C"] or usual[0], elsewhere["d"] or usual[1]
        letter = "R" if int(cardinality) == 1 else "X"
        return f'write "{letter}{elsewhere["depth"]}_{cardinality}x{width}d"'
    return (
        'write for instance "X50_32x4d", "R101_1x64d" or "X29_8x64d_w0.5"; '
        "_stride1x1 and _noshortcut may follow"
    )


def _error(found: str, mend: str) -> InputError:
    return InputError("MODEL.RESNETS", found, mend)
