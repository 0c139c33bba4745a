"""Writes other programs' weights files for tests: a network of ours under their names.

The names of the small networks here are written anew, without the package's table.
"""

import pickle

import torch
from safetensors.torch import save_file
from torch7_writer import NetworkWriter, torch7_bytes

from resnext_det.models import Architecture, build_resnext

COUNTER = "num_batches_tracked"
SMALL = "X14_4x8d_w0.125"
CAFFE2_FIELDS = {
    "s": {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"},
    "gamma": {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "running_mean",
        "running_var": "running_var",
    },
}
BRANCHES = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}


def fill(model, seed=0):
    """Random weights and statistics, of a size that keeps activations in bounds."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif tensor.dim() > 1:
            tensor.normal_(std=(1 / tensor[0].numel()) ** 0.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.uniform_(-0.5, 1, generator=generator)
        else:
            tensor.fill_(3)
    return model.eval()


def network(name=SMALL, num_classes=5, norm="BN", seed=0):
    """A network of ours with random weights and statistics, in evaluation mode."""
    architecture = Architecture.from_name(name)
    return fill(build_resnext(**architecture.as_dict(), num_classes=num_classes, norm=norm), seed)


def empty(build, **arguments):
    """A large network without the seconds that its own initialisation takes."""
    with torch.device("meta"):
        model = build(**arguments)
    return model.to_empty(device="cpu")


def torchvision_names(model):
    """torchvision's and timm's state dict of a network of ours."""
    renamed = {}
    for name, tensor in model.state_dict().items():
        stage, _, rest = name.partition(".")
        if stage == "stem":
            renamed[rest.replace("conv1.norm", "bn1")] = tensor
        elif stage == "linear":
            renamed[f"fc.{rest}"] = tensor
        else:
            for number in "123":
                rest = rest.replace(f"conv{number}.norm", f"bn{number}")
            rest = rest.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
            renamed[f"layer{int(stage[3:]) - 1}.{rest}"] = tensor
    return renamed


def caffe2_names(model, spelling="s", fused=False, head="pred"):
    """Caffe2's blobs, as arrays. ``fused``: scale and shift alone."""
    blobs = {}
    for name, tensor in model.state_dict().items():
        module, _, field = name.rpartition(".")
        is_norm = module.endswith(".norm")
        if field == COUNTER or (is_norm and fused and "running" in field):
            continue
        *place, layer = module.removesuffix(".norm").split(".")
        blob = {"stem": "conv1", "": head}.get(".".join(place))
        if blob is None:
            blob = "_".join([*place, BRANCHES[layer]])
        if is_norm:
            blob = f"res_{blob}" if place == ["stem"] else blob
            blobs[f"{blob}_bn_{CAFFE2_FIELDS[spelling][field]}"] = tensor.numpy()
        else:
            blobs[f"{blob}_{field[0]}"] = tensor.numpy()
    return blobs


def detectron2_names(model, prefix="", head="linear."):
    """Detectron2's, with the prefix before the trunk; the converter's head is "stem.fc."."""
    return {
        name.replace("linear.", head) if name.startswith("linear.") else prefix + name: tensor
        for name, tensor in model.state_dict().items()
    }


def write(path, tree, protocol=2):
    """By the name's ending: torch.save, a pickle (Detectron's are of protocol 2), safetensors."""
    if path.suffix == ".pth":
        torch.save(tree, path)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(tree, protocol=protocol))
    else:
        save_file({k: v.contiguous() for k, v in tree.items()}, path, metadata={"format": "pt"})
    return path


def write_torch7(path, model):
    path.write_bytes(torch7_bytes(NetworkWriter(model).network()))
    return path
