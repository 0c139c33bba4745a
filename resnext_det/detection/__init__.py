"""Detection. Importing this registers the backbones, heads and the meta-architecture."""

from . import backbone, meta_arch, roi_heads, rpn

__all__ = ["backbone", "meta_arch", "roi_heads", "rpn"]
