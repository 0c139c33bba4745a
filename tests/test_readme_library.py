"""Guard the README's Python: every example of the library runs, in order, as it stands there.

The files that it names do not exist here. Small ones stand in for them: a picture, a detector
that has learnt nothing, and classification weights of the network that the path names.
"""

import ast
import contextlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import GeneralizedRCNN, build_model
from PIL import Image

from resnext_det.config import load_cfg
from resnext_det.data import coco
from resnext_det.data.proposals import ProposalWriter, join_parts
from resnext_det.detection.detector import record_of
from resnext_det.detection.meta_arch import NonSharedRCNN
from resnext_det.models import ResNeXt, build_resnext
from resnext_det.weights import WeightsRecord, read_weights, save_weights

ROOT = Path(__file__).parents[1]
HEADING = "In your own Detectron2 script"
FILE = re.compile(r"[\w./-]+\.(safetensors|pth|pkl|jpg|jpeg|png|json|yaml)")
NETWORK = re.compile(r"[RX][0-9]+_[0-9]+x[0-9]+d(_w[0-9.]+[0-9])?")
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PRECISION": "fp32",
    "MODEL.RESNETS.NUM_GROUPS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.125,
    "INPUT.MIN_SIZE_TEST": 96,
}


def blocks_of(text):
    """[(heading, code), ...]: the indented blocks of a Markdown text, without their indent."""
    found, heading, lines = [], "", []
    for line in [*text.splitlines(), "end"]:
        if line.startswith("    "):
            lines.append(line[4:])
        elif not line and lines:
            lines.append("")  # a block may hold empty lines
        else:
            if lines:
                found.append((heading, "\n".join(lines).rstrip() + "\n"))
                lines = []
            heading = line.lstrip("# ") if line.startswith("#") else heading
    return found


def examples(text):
    """The blocks of Python: all under `HEADING`, and whatever starts like Python elsewhere."""
    return [
        code
        for heading, code in blocks_of(text)
        if heading == HEADING or code.startswith(("import ", "from ", "cfg."))
    ]


def files_named(code):
    words = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    return [word for word in words if isinstance(word, str) and FILE.fullmatch(word)]


# ---- stand-ins ----


def write_classification(path, name):
    torch.manual_seed(0)
    network = build_resnext(name, num_classes=2)
    record = WeightsRecord(
        kind="classification",
        architecture=network.architecture.as_dict(),
        pixel_format="RGB",
        pixel_mean=[120.0, 110.0, 100.0],
        pixel_std=[58.0, 57.0, 56.0],
        class_names=["a", "b"],
    )
    save_weights(path, network.state_dict(), record)


def write_detector(path, demo_set):
    train = ["readme_train", f"{demo_set}/annotations/train.json", f"{demo_set}/train"]
    values = {**TINY, "DATASETS.COCO_JSON": [train], "DATASETS.TRAIN": "('readme_train',)"}
    options = [str(word) for pair in values.items() for word in pair]
    cfg = load_cfg(ROOT / "configs" / "demo" / "detection.yaml", options)
    cfg.DATASETS.TEST = ()
    coco.register_from_config(cfg)
    coco.load("readme_train")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(coco.class_names("readme_train")[0])
    torch.manual_seed(0)
    model = build_model(cfg)
    save_weights(path, model.state_dict(), record_of(cfg, "detector", "readme_train"))


def write_proposals(path):
    writer = ProposalWriter(path, 0)
    writer.add(7, np.ones((3, 4), np.float32), np.array([0.0, 2.0, 1.0], np.float32))
    writer.close()
    join_parts(path, 1, "readme")


def write_picture(path):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_stand_in(path, demo_set):
    """What the README's path promises, in the current folder."""
    assert not path.is_absolute() and ".." not in path.parts, path
    path.parent.mkdir(parents=True, exist_ok=True)
    network = NETWORK.search(str(path))
    if path.suffix in (".jpg", ".jpeg", ".png"):
        write_picture(path)
    elif path.suffix == ".safetensors" and network:
        write_classification(path, network[0])
    elif path.suffix == ".safetensors" and "proposals" in path.parts:
        write_proposals(path)
    elif path.suffix == ".safetensors":
        write_detector(path, demo_set)
    else:
        pytest.fail(f"README.md names {path}, and there is no stand-in for it")


# ---- the README ----


def readme_examples():
    return examples((ROOT / "README.md").read_text())


@contextlib.contextmanager
def inside(folder):
    """contextlib.chdir of Python 3.11."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo_set):
    """Where the examples run: the named files are there, afterwards they are gone again."""
    root = tmp_path_factory.mktemp("readme")
    names = list(dict.fromkeys(name for code in readme_examples() for name in files_named(code)))
    with inside(root):
        for name in names:
            write_stand_in(Path(name), demo_set)
    yield root
    for name in names:  # 90 MB of weights
        os.remove(root / name)


@pytest.fixture(scope="module")
def states(folder):
    """The variables behind each example; an error names the example."""
    variables, after = {"__name__": "readme"}, []
    with inside(folder):
        for number, code in enumerate(readme_examples(), start=1):
            exec(compile(code, f"README.md, example {number}", "exec"), variables)
            after.append(dict(variables))
    return after


def values_of(states, kind):
    """All variables of a kind, behind any example, each once."""
    found = {id(value): value for state in states for value in state.values()}
    return [value for value in found.values() if isinstance(value, kind)]


def test_every_example_runs_and_leaves_something(states):
    assert len(states) >= 4
    for number, state in enumerate(states):
        before = states[number - 1] if number else {}
        assert [name for name in state if state[name] is not before.get(name)], number


def test_the_first_builds_the_papers_detector_and_runs_it(states):
    first = states[0]
    (detector,) = values_of(states[:1], GeneralizedRCNN)
    member = detector.backbone.architecture
    assert member.name == "X50_32x4d"
    assert detector.roi_heads.res5[0].conv2.groups == 32
    assert first["output"]["instances"].image_size == tuple(first["image"].shape[1:])


def test_the_weights_are_in_it(states, folder):
    """In trunk and head: the file's own numbers."""
    (name,) = [n for n in files_named("".join(readme_examples())) if NETWORK.search(n)]
    tensors, record = read_weights(folder / name)
    assert record in values_of(states, WeightsRecord)
    detector = values_of(states, GeneralizedRCNN)[-1]  # built anew, as the file says
    for module, key in ((detector.backbone, "stem.conv1"), (detector.roi_heads, "res5.2.conv3")):
        assert torch.equal(module.get_submodule(key).weight.cpu(), tensors[f"{key}.weight"])


def test_the_two_networks_alone(states):
    """Each with the trunk and the head that the config names, and no parameter in both."""
    (two,) = values_of(states, NonSharedRCNN)
    trunks = [two.rpn.backbone, two.fast_rcnn.backbone]
    assert [trunk.architecture.name for trunk in trunks] == ["X50_32x4d"] * 2
    assert not {*map(id, two.rpn.parameters())} & {*map(id, two.fast_rcnn.parameters())}
    assert set(states[-1]["both"]) == {"instances", "proposals"}


def test_stored_proposals_alone(states):
    assert states[-1]["logits"].tolist() == [2.0, 1.0, 0.0] and states[-1]["boxes"].shape == (3, 4)


def test_a_network_by_its_name(states):
    networks = [n for n in values_of(states, ResNeXt) if n.num_classes is not None]
    assert [network.architecture.name for network in networks] == ["X50_32x4d"]


def test_depth_200_has_one_form():
    """As the section says."""
    with pytest.raises(ValueError, match="DEPTH 200 have no such form"):
        build_resnext("R200_1x64d", form="a")


# ---- the checks above can fail ----


def test_what_counts_as_an_example():
    text = (
        f"# A\n\n    make it\n\n    import x\n\n    y = 1\ntext\n\n    cfg.A = 1\n\n## {HEADING}\n"
        "\ntext\n\n    z = 2\n\ntext\n\n## B\n\n    python tools/x.py\n"
    )
    assert examples(text) == ["cfg.A = 1\n", "z = 2\n"]
    assert blocks_of(text)[0] == ("A", "make it\n\nimport x\n\ny = 1\n")


def test_files_named():
    code = 'f("a/b.safetensors", "res4", "c.jpg", "X50_32x4d")'
    assert files_named(code) == ["a/b.safetensors", "c.jpg"]
    with pytest.raises(pytest.fail.Exception, match="no stand-in"):
        write_stand_in(Path("weights.pth"), None)
