"""The classifier that tests train: 0.02 M parameters on crops of 32 pixels, as config keys."""

TINY_CLASSIFIER = {
    "MODEL.PRECISION": "fp32",
    "MODEL.RESNETS.NUM_GROUPS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.125,
    "DATA.CROP_SIZE": 32,
    "DATA.RESIZE_SIZE": 32,
}
