"""The names and numbers of one ResNeXt: depth, C x d, and what follows from them."""

from dataclasses import asdict, dataclass

from ..errors import InputError

# Bottleneck blocks in res2..res5. 50, 101 and 152 are the paper's (Table 1; He et al. 2016);
# 14 and 26 are the same family with 1 and 2 blocks a stage, for machines without a GPU.
BLOCKS_PER_STAGE = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STEM_CHANNELS, RES2_CHANNELS = 64, 256


@dataclass(frozen=True)
class Architecture:
    """One member of the family.

    Args:
        depth: number of layers, a key of ``BLOCKS_PER_STAGE``.
        cardinality: C, the number of paths of a block (paper, Sec. 3.3); 1 is a ResNet.
        bottleneck_width: d, channels of one path in res2; doubles at each stage (Table 2).
        width_multiplier: scales the stem's, the blocks' and the bottlenecks' channels.
        stride_in_1x1: the stride of a stage's first block sits in the 1x1 (MSRA's ResNets)
            instead of the 3x3 (the paper's).

    Raises:
        InputError: unknown depth, or numbers that give no whole number of channels.
    """

    depth: int = 50
    cardinality: int = 32
    bottleneck_width: int = 4
    width_multiplier: float = 1.0
    stride_in_1x1: bool = False

    def __post_init__(self):
        if self.depth not in BLOCKS_PER_STAGE:
            raise InputError(
                "MODEL.RESNETS",
                f"DEPTH is {self.depth}",
                f"choose one of {', '.join(map(str, BLOCKS_PER_STAGE))}",
            )
        if self.cardinality < 1 or self.bottleneck_width < 1:
            raise InputError(
                "MODEL.RESNETS",
                f"NUM_GROUPS x WIDTH_PER_GROUP is {self.cardinality} x {self.bottleneck_width}",
                "set both to 1 or more",
            )
        for name, channels in (
            ("WIDTH_PER_GROUP", self.bottleneck_width),
            ("the stem's width", STEM_CHANNELS),
            ("res2's width", RES2_CHANNELS),
        ):
            scaled = channels * self.width_multiplier
            if scaled < 1 or scaled != int(scaled):
                raise InputError(
                    "MODEL.RESNETS",
                    f"WIDTH_MULTIPLIER {self.width_multiplier} "
                    f"times {name} {channels} is {scaled:g}",
                    "choose numbers whose product is a whole number",
                )

    @property
    def name(self) -> str:
        """For instance "X50_32x4d", "R50_1x64d", "X14_8x8d_w0.5"."""
        letter = "R" if self.cardinality == 1 else "X"
        suffix = "" if self.width_multiplier == 1 else f"_w{self.width_multiplier:g}"
        return f"{letter}{self.depth}_{self.cardinality}x{self.bottleneck_width}d{suffix}"

    @property
    def blocks_per_stage(self) -> tuple[int, ...]:
        return BLOCKS_PER_STAGE[self.depth]

    @property
    def stem_channels(self) -> int:
        return int(STEM_CHANNELS * self.width_multiplier)

    def out_channels(self, stage: int) -> int:
        """Output channels of res2..res5 (``stage`` 2..5): 256, 512, 1024, 2048 at width 1."""
        return int(RES2_CHANNELS * self.width_multiplier) * 2 ** (stage - 2)

    def bottleneck_channels(self, stage: int) -> int:
        """C * d of a stage, the 3x3's channels (Table 2, "width of group conv.")."""
        width = int(self.bottleneck_width * self.width_multiplier)
        return self.cardinality * width * 2 ** (stage - 2)

    def as_dict(self) -> dict:
        return asdict(self)
