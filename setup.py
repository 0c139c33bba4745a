"""Package description of resnext_det. `make setup` installs it together with torch and Detectron2.

Detectron2 is missing from `install_requires` on purpose: the package registry has no release
under that name, so a requirement here could never be met. `requirements/install_detectron2.py`
brings it (and keeps the one you have); its own dependencies are listed below, since the build it
installs is put in place without them.
"""

from setuptools import find_packages, setup

OURS = [
    "torch>=2.4",
    "torchvision>=0.19",
    "numpy>=1.24",
    "opencv-python>=4.7",
    "pycocotools>=2.0.7",
    "PyYAML>=6.0",
    "safetensors>=0.4",
    "matplotlib>=3.7",
    "Pillow>=9.4",
    "fvcore>=0.1.5",
    "iopath>=0.1.7",
    "tqdm>=4.62",
]
DETECTRON2_NEEDS = [  # imported by Detectron2 itself
    "yacs>=0.1.8",
    "tabulate>=0.8.9",
    "cloudpickle>=2.0",
    "tensorboard>=2.10",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    "termcolor>=1.1",
    "packaging>=21.0",
    "shapely>=2.0",  # where INPUT.CROP cuts polygon masks
]
FAST = ["hotcoco>=1.3"]  # COCO's figures sooner; pycocotools stays, and gives the same ones

setup(
    name="resnext_det",
    version="0.1.0",
    description="ResNeXt backbones and Faster R-CNN detectors on Detectron2",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["resnext_det", "resnext_det.*"]),
    package_data={"resnext_det.native": ["*.c", "*.h"]},
    install_requires=OURS + DETECTRON2_NEEDS,
    extras_require={
        "dev": ["pytest>=7.4", "pytest-xdist>=3.3", "ruff>=0.6", "timm>=1.0", *FAST],
        "fast": FAST,
        "export": ["onnx>=1.16"],
    },
)
