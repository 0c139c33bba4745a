"""Where the trunk's tensors live inside the models that use it.

A classification file says ``stem.*``, ``res2.*`` .. ``res5.*``, ``linear.*``. The same
tensors stand under ``backbone.`` (C4), ``backbone.bottom_up.`` (FPN) or ``roi_heads.``
(res5 of C4), and in the joined detector under ``rpn.`` or ``fast_rcnn.`` before that.
"""

NETWORKS = ("rpn.", "fast_rcnn.")
PLACES = ("backbone.bottom_up.", "backbone.", "roi_heads.")
TRUNK_PARTS = ("stem.", "res2.", "res3.", "res4.", "res5.")


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
