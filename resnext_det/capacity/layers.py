"""Table 1: what a network is made of, read from its layers, beside the paper's column."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .. import paper
from ..models import Architecture
from ..models.resnext import ResNeXt
from .networks import on_meta, stages_of
from .table import Column, Table, side

max_pooling = torch.ops.aten.max_pool2d_with_indices.default


class _Poolings(TorchDispatchMode):
    """Keeps kernel and stride of every max pooling that runs: the stem's is no layer."""

    def __init__(self):
        super().__init__()
        self.found: list[paper.Pooling] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is max_pooling:
            (kernel, _), (stride, _) = args[1:3]
            self.found.append(paper.Pooling(kernel=kernel, stride=stride))
        return func(*args, **(kwargs or {}))


def layers_table(name: str) -> Table:
    """Every row of a column of Table 1, for a key of ``paper.TABLE_1``."""
    ours, printed = _rows(layers_of(name)), _rows(paper.TABLE_1[name])
    return Table(
        title=f"Table 1, {name}, layers at 224 x 224 pixels",
        columns=(Column("stage"), Column("output", side), Column("paper output", side))
        + (Column("layers"), Column("paper layers")),
        rows=tuple(
            (stage, output, paper_output, layers, paper_layers)
            for (stage, output, layers), (_, paper_output, paper_layers) in zip(
                ours, printed, strict=True
            )
        ),
        notes=(
            "conv2..conv5 are res2..res5 here. The paper lists the max pooling under conv2; here "
            "it is the end of the stem.",
        ),
    )


@torch.no_grad()
def layers_of(name: str) -> paper.Layers:
    """What is built under an ImageNet network's name, in the terms of Table 1's columns."""
    member = Architecture.from_name(name)
    network = on_meta(member, num_classes=1000).eval()
    conv1 = network.stem.conv1
    images = torch.empty(1, 3, 224, 224, device="meta")
    with _Poolings() as poolings:
        network.stem(images)
    (pooling,) = poolings.found
    stages = stages_of(member, 224, 1000)
    return paper.Layers(
        conv1=paper.Convolution(
            output=conv1(images).shape[-1],
            kernel=conv1.kernel_size[0],
            channels=conv1.out_channels,
            stride=conv1.stride[0],
        ),
        pooling=pooling,
        stages=_stages(network, {stage.name: stage.output[0] for stage in stages}),
        classes=network.linear.out_features,
        parameters=sum(stage.parameters for stage in stages),
        flops=sum(stage.multiply_adds for stage in stages),
    )


def _stages(network: ResNeXt, outputs: dict[str, int]) -> dict[str, paper.Stage]:
    stages = {}
    for name, blocks in zip(network.stage_names, network.stages, strict=True):
        convs = blocks[0].conv1, blocks[0].conv2, blocks[0].conv3
        stages[name] = paper.Stage(
            output=outputs[name],
            kernels=tuple(conv.kernel_size[0] for conv in convs),
            channels=tuple(conv.out_channels for conv in convs),
            cardinality=convs[1].groups,
            blocks=len(blocks),
        )
    return stages


def _rows(column: paper.Layers) -> list[tuple[str, tuple[int, int], str]]:
    """(stage, output, layers) nearly as Table 1 writes them."""
    conv1, pooling = column.conv1, column.pooling
    kernel = f"{conv1.kernel}x{conv1.kernel}"
    rows = [("conv1", conv1.output, f"{kernel}, {conv1.channels}, stride {conv1.stride}")]
    pool = f"{pooling.kernel}x{pooling.kernel} max pool, stride {pooling.stride}; "
    for name, stage in column.stages.items():
        before = pool * (name == "res2")
        rows.append((name.replace("res", "conv"), stage.output, before + _template(stage)))
    rows.append(("head", 1, f"global average pool, {column.classes}-d fc, softmax"))
    return [(name, (output, output), layers) for name, output, layers in rows]


def _template(stage: paper.Stage) -> str:
    """For instance "[1x1, 128; 3x3, 128, C=32; 1x1, 256] x 3"."""
    layers = [f"{k}x{k}, {c}" for k, c in zip(stage.kernels, stage.channels, strict=True)]
    if stage.cardinality > 1:
        layers[1] += f", C={stage.cardinality}"
    return f"[{'; '.join(layers)}] x {stage.blocks}"
