"""Detection. Importing this registers the backbones, heads and the meta-architecture."""

from . import backbone, heads, meta_arch, roi_heads, rpn
from .weights_setup import apply_record

__all__ = ["apply_record", "backbone", "heads", "meta_arch", "roi_heads", "rpn"]
