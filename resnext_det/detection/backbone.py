"""ResNeXt in Detectron2's backbone registry, and whether a config's detector can be built."""

import re

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import nn

from ..config import architecture_arguments, check_sizes, trunk_arguments
from ..errors import InputError
from ..models import BLOCKS_PER_STAGE, Architecture, ResNeXt, build_resnext
from ..models.compiled import check_compile, compile_in_place
from ..models.precision import at_least_float32, autocast, resolve_precision

FEATURE = re.compile(r"stem|res[0-9]|p[0-9]")
FUSE_TYPES = ("sum", "avg")


def precision_of(cfg: CfgNode) -> str:
    """MODEL.PRECISION, "auto" resolved for MODEL.DEVICE; "fp32" in a plain Detectron2 config."""
    device = torch.device(cfg.MODEL.DEVICE).type
    return resolve_precision(cfg.MODEL.get("PRECISION", "fp32"), device)


def keep_layout(module: nn.Module, cfg: CfgNode) -> bool:
    """Weights as their features come, so that none is turned at each step.

    Returns:
        MODEL.CHANNELS_LAST.
    """
    is_last = trunk_arguments(cfg)["channels_last"]
    if is_last:
        module.to(memory_format=torch.channels_last)
    return is_last


@BACKBONE_REGISTRY.register()
def build_resnext_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNeXt:
    """The trunk of a C4 detector: MODEL.RESNETS.OUT_FEATURES, usually ["res4"].

    Raises:
        InputError: MODEL.RESNETS or MODEL.BACKBONE names no network, or one for CIFAR, which
            has no res5, or asks for what the trunk does not do (dilation, deformable layers).
    """
    require_res5(cfg)
    trunk = build_resnext(
        **trunk_arguments(cfg),
        out_features=list(cfg.MODEL.RESNETS.OUT_FEATURES),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        precision=precision_of(cfg),
        in_channels=input_shape.channels,
    )
    if cfg.MODEL.get("COMPILE", False):
        compile_in_place(trunk, cfg.MODEL.DEVICE)
    return trunk


@BACKBONE_REGISTRY.register()
def build_resnext_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> "ResNeXtFPN":
    """Feature pyramid on the trunk, in its precision and layout.

    Keys are those of Detectron2's ``build_resnet_fpn_backbone``.

    Raises:
        InputError: as `build_resnext_backbone`; FPN.IN_FEATURES are not among the trunk's
            features, or FPN.FUSE_TYPE is unknown.
    """
    trunk = build_resnext_backbone(cfg, input_shape)
    _check_pyramid(cfg, tuple(trunk.output_shape()))
    pyramid = ResNeXtFPN(
        bottom_up=trunk,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    keep_layout(pyramid, cfg)
    return pyramid


class ResNeXtFPN(FPN):
    """Detectron2's pyramid with its convolutions in the trunk's precision; outputs are float32."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        with autocast(self.bottom_up.precision, x.device.type):
            outputs = super().forward(x)
        return {name: at_least_float32(feature) for name, feature in outputs.items()}


def _check_pyramid(cfg: CfgNode, features: tuple[str, ...]) -> None:
    keys = cfg.MODEL.FPN
    if not keys.IN_FEATURES or not set(keys.IN_FEATURES) <= set(features):
        raise InputError(
            "MODEL.FPN",
            f"IN_FEATURES is {list(keys.IN_FEATURES)}, and the trunk gives {list(features)}",
            "name the same stages in MODEL.FPN.IN_FEATURES and MODEL.RESNETS.OUT_FEATURES",
        )
    if keys.FUSE_TYPE not in FUSE_TYPES:
        raise InputError(
            "MODEL.FPN", f"FUSE_TYPE is {keys.FUSE_TYPE!r}", f"choose {' or '.join(FUSE_TYPES)}"
        )


def require_res5(cfg: CfgNode) -> Architecture:
    """The network of MODEL.RESNETS. Raises InputError where it has no res5, as CIFAR's have none.

    Every other depth fits: at 200 the features of res2..res4 are sums without a ReLU, which RPN,
    RoI pooling and pyramid read as they are (see `ResNeXt`), and res5 ends in a norm and a ReLU.
    """
    architecture = Architecture(**architecture_arguments(cfg))
    if not architecture.has_res5:
        fit = [depth for depth in BLOCKS_PER_STAGE if Architecture(depth).has_res5]
        raise InputError(
            "MODEL.RESNETS",
            f"DEPTH is {architecture.depth}, a network for CIFAR without the res5 that a "
            "detector's head needs",
            f"set DEPTH to one of {', '.join(map(str, fit))}",
        )
    return architecture


def check_image_sizes(cfg: CfgNode) -> None:
    """Raises InputError where images are made smaller than the stride of one of our trunks."""
    if cfg.MODEL.BACKBONE.NAME in ("build_resnext_backbone", "build_resnext_fpn_backbone"):
        keys = ("INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST")
        check_sizes(cfg, keys, require_res5(cfg).stride)


def check_detector(cfg: CfgNode) -> None:
    """Build all networks of MODEL.META_ARCHITECTURE, without memory, and forget them.

    For the start of a run: what a later stage's network would refuse is refused now. It takes
    fractions of a second; ``cfg`` is not changed.

    Raises:
        InputError: a network refuses the config, or Detectron2 cannot build it; or images are too
            small for it; or a compiler that MODEL.COMPILE needs is missing.
    """
    check_image_sizes(cfg)
    if cfg.MODEL.get("COMPILE", False):
        check_compile(cfg.MODEL.DEVICE, cfg.MODEL.REGROUP, cfg.MODEL.RECOMPUTE)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    try:
        with torch.device("meta"):
            build_model(cfg)
    except InputError:
        raise
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise _not_built(cfg, error) from error


def _not_built(cfg: CfgNode, error: Exception) -> InputError:
    word = error.args[0] if error.args else ""
    if isinstance(error, KeyError) and FEATURE.fullmatch(str(word)):
        return InputError(
            "MODEL",
            f"a head's IN_FEATURES names {word}, which the backbone does not give "
            f"(RESNETS.OUT_FEATURES is {list(cfg.MODEL.RESNETS.OUT_FEATURES)})",
            "make RPN.IN_FEATURES and ROI_HEADS.IN_FEATURES name features of the backbone",
        )
    return InputError(
        "MODEL",
        f"Detectron2 cannot build {cfg.MODEL.META_ARCHITECTURE} from these keys "
        f"({type(error).__name__}: {' '.join(str(word).split()):.200})",
        "correct the key that this is about",
    )
