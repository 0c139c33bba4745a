"""How the package is had: setup.py, requirements, Makefile, .ci/run and the Detectron2 question."""

import csv
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
DETECTRON2_IMPORTS = {
    "fvcore", "iopath", "pycocotools", "yacs", "tabulate", "cloudpickle", "tqdm", "tensorboard",
    "omegaconf", "hydra-core", "termcolor", "matplotlib", "packaging", "pillow",
}  # fmt: skip


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


installer = load(ROOT / "requirements" / "install_detectron2.py")


# ---- setup.py and requirements ----


@pytest.fixture
def metadata(monkeypatch):
    setuptools = pytest.importorskip("setuptools")
    captured = {}
    monkeypatch.setattr(setuptools, "setup", captured.update)
    monkeypatch.chdir(ROOT)  # find_packages looks in the current folder
    runpy.run_path(str(ROOT / "setup.py"))
    return captured


def test_metadata_names_only_our_package(metadata):
    assert metadata["name"] == "resnext_det"
    assert metadata["python_requires"] == ">=3.10"
    assert "resnext_det" in metadata["packages"]
    assert {name.split(".")[0] for name in metadata["packages"]} == {"resnext_det"}


def test_requirements_are_lower_bounds(metadata):
    extras = [line for lines in metadata["extras_require"].values() for line in lines]
    for line in metadata["install_requires"] + extras:
        operators = [spec.operator for spec in Requirement(line).specifier]
        assert operators == [">="], line


def test_requirements_hold_what_detectron2_imports_but_not_detectron2(metadata):
    names = {Requirement(line).name.lower() for line in metadata["install_requires"]}
    assert DETECTRON2_IMPORTS <= names
    assert not [name for name in names if "detectron" in name]


def test_this_environment_meets_the_requirements(metadata):
    from importlib.metadata import version

    for line in metadata["install_requires"]:
        wanted = Requirement(line)
        try:
            found = version(wanted.name)
        except ModuleNotFoundError:  # opencv comes in several distributions
            assert wanted.name == "opencv-python", wanted.name
            continue
        assert wanted.specifier.contains(found, prereleases=True), f"{line}, found {found}"


def test_pinned_detectron2_has_one_line_with_a_hash():
    text = (ROOT / "requirements" / "detectron2.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) == 1
    assert re.fullmatch(r"sal-detectron2==0\.7\.2 --hash=sha256:491af0c7[0-9a-f]{56}", lines[0])


# ---- requirements/install_detectron2.py, with pip and the probe replaced ----

WHEEL = {
    "detectron2/__init__.py": "",
    "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "binary",
    "detectron2/_Config.py": "",
    "tools/__init__.py": "",
    "tools/train_net.py": "",
}


def write_wheel(folder):
    """What pip leaves of the pinned wheel in its --target folder, in small."""
    rows = [[name, "sha256=x", "1"] for name in WHEEL]
    rows.append(["sal_detectron2-0.7.2.dist-info/RECORD", "", ""])
    for name, text in WHEEL.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    record = folder / "sal_detectron2-0.7.2.dist-info" / "RECORD"
    record.parent.mkdir()
    with record.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return record


class FakeRun:
    """Answers the probe from a list of (status, stdout, stderr); pip works, but for `failing`."""

    def __init__(self, *probes, failing=""):
        self.probes = list(probes)
        self.failing = failing
        self.pip_calls = []
        self.probe_folders = []

    def __call__(self, command, cwd=None):
        if "pip" not in command:
            self.probe_folders.append(Path(cwd))
            return CompletedProcess(command, *self.probes.pop(0))
        self.pip_calls.append(command[command.index("pip") + 2 :])
        if self.failing in self.pip_calls[-1]:
            return CompletedProcess(command, 1, "", "ERROR: no\nERROR: out of reach\n")
        if "--target" in command:
            write_wheel(Path(command[command.index("--target") + 1]))
        if "wheel" in command:
            (Path(command[command.index("-w") + 1]) / "detectron2-0.6-any.whl").write_text("")
        return CompletedProcess(command, 0, "", "")


WORKS = (0, "0.6 at /there/detectron2\n", "")
ABSENT = (installer.ABSENT, "", "")
BROKEN = (1, "", "Traceback\nImportError: cannot import name '_C'\n")


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_detectron2_that_loads_is_kept(tmp_path):
    run = FakeRun(WORKS)
    assert installer.ensure("", run, tmp_path) == "kept 0.6 at /there/detectron2"
    assert run.pip_calls == []
    assert not run.probe_folders[0].is_relative_to(ROOT)
    assert run.probe_folders[0] != Path.cwd()


def test_a_detectron2_that_does_not_load_is_reported_not_replaced(tmp_path):
    run = FakeRun(BROKEN)
    with pytest.raises(installer.SetupError, match="cannot import name '_C'.*DETECTRON2=") as info:
        installer.ensure("", run, tmp_path)
    assert "\n" not in str(info.value)
    assert run.pip_calls == []


def test_the_pinned_wheel_is_installed_where_there_is_none(tmp_path):
    run = FakeRun(ABSENT, WORKS)
    assert installer.ensure("", run, tmp_path).startswith("installed the pinned build: 0.6")
    (call,) = run.pip_calls
    command = " ".join(call)
    for part in (
        "install -q --no-deps", "--only-binary=:all:", "--python-version 3.10",
        "--implementation cp", "--abi none", "--platform any",
        f"--require-hashes -r {ROOT / 'requirements' / 'detectron2.txt'}",
    ):  # fmt: skip
        assert part in command
    assert files(tmp_path) == {
        "detectron2/__init__.py",
        "detectron2/_Config.py",
        "sal_detectron2-0.7.2.dist-info/RECORD",
    }


def test_a_tools_package_of_the_user_is_left_alone(tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("")  # the same file as the wheel's
    (tmp_path / "tools" / "train_net.py").write_text("mine")
    installer.ensure("", FakeRun(ABSENT, WORKS), tmp_path)
    assert (tmp_path / "tools" / "__init__.py").exists()
    assert (tmp_path / "tools" / "train_net.py").read_text() == "mine"
    record = (tmp_path / "sal_detectron2-0.7.2.dist-info" / "RECORD").read_text()
    assert "tools/" not in record  # or `pip uninstall` would delete the user's


def test_strip_removes_only_what_record_lists(tmp_path):
    record = write_wheel(tmp_path)
    (tmp_path / "tools" / "mine.py").write_text("")
    (tmp_path / "detectron2" / "_C.mine.so").write_text("")
    assert installer.strip(tmp_path) == record.parent
    assert files(tmp_path) == {
        "detectron2/__init__.py",
        "detectron2/_Config.py",
        "detectron2/_C.mine.so",
        "tools/mine.py",
        "sal_detectron2-0.7.2.dist-info/RECORD",
    }


def test_an_interrupted_setup_can_be_repeated(tmp_path):
    write_wheel(tmp_path)
    shutil.rmtree(tmp_path / "detectron2")
    shutil.rmtree(tmp_path / "tools")
    installer.ensure("", FakeRun(ABSENT, WORKS), tmp_path)
    assert (tmp_path / "detectron2" / "__init__.py").exists()


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "notes.txt").write_text("mine")
    with pytest.raises(installer.SetupError, match="detectron2 is in the way.*remove it"):
        installer.ensure("", FakeRun(ABSENT), tmp_path)
    assert files(tmp_path) == {"detectron2/notes.txt"}  # and no staging folder is left


def test_a_chosen_requirement_replaces_what_is_there(tmp_path):
    run = FakeRun(WORKS)
    done = installer.ensure("git+https://host/detectron2.git", run, tmp_path)
    assert done == "installed git+https://host/detectron2.git: 0.6 at /there/detectron2"
    build, remove, install = run.pip_calls
    assert build[:4] == ["wheel", "-q", "--no-deps", "--no-build-isolation"]
    assert build[-1] == "git+https://host/detectron2.git"
    assert remove == ["uninstall", "-q", "-y", "sal-detectron2", "detectron2"]
    assert install[:2] == ["install", "-q"] and install[2].endswith("/detectron2-0.6-any.whl")


def test_a_requirement_that_does_not_build_changes_nothing(tmp_path):
    run = FakeRun(failing="wheel")
    with pytest.raises(installer.SetupError, match="ERROR: out of reach; nothing was changed"):
        installer.ensure("git+https://host/detectron2.git", run, tmp_path)
    assert [call[0] for call in run.pip_calls] == ["wheel"]


def test_a_chosen_folder_is_given_to_pip_as_a_folder(tmp_path, monkeypatch):
    (tmp_path / "detectron2").mkdir()
    monkeypatch.chdir(tmp_path)
    run = FakeRun(WORKS)
    installer.ensure("detectron2", run, tmp_path)  # pip alone would take this for a name
    assert run.pip_calls[0][-1] == str(tmp_path.resolve() / "detectron2")


@pytest.mark.parametrize("requirement", ["", "git+https://host/detectron2.git"])
def test_a_failing_pip_is_one_line_with_a_mend(tmp_path, requirement, capsys):
    run = FakeRun(ABSENT, failing="install")
    with pytest.raises(installer.SetupError, match="out of reach; .*make setup") as info:
        installer.ensure(requirement, run, tmp_path)
    assert "\n" not in str(info.value)
    assert "ERROR: no" in capsys.readouterr().err  # pip's own words come first
    assert files(tmp_path) == set()


def test_an_installed_build_that_does_not_load_is_an_error(tmp_path):
    with pytest.raises(installer.SetupError, match="installed x, but it does not load"):
        installer.ensure("x", FakeRun(BROKEN), tmp_path)


def test_the_probe_tells_absent_from_broken_from_working(tmp_path, monkeypatch):
    """The real probe, on stand-ins: the folder named by PYTHONPATH comes before site-packages."""
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "9"\nraise ImportError("no luck")\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert installer.probe(installer.run) == ("broken", "ImportError: no luck")
    (package / "__init__.py").write_text('__version__ = "9"\n')
    for name in ("data", "engine", "evaluation", "modeling"):
        (package / f"{name}.py").write_text("")
    assert installer.probe(installer.run) == ("works", f"9 at {package}")
    blocked = installer.PROBE.replace('find_spec("detectron2")', 'find_spec("detectron2_none")')
    monkeypatch.setattr(installer, "PROBE", blocked)
    assert installer.probe(installer.run) == ("absent", "")


# ---- resnext_det/compat.py ----


def run_compat(before, after=""):
    """Load compat.py by its path (the package imports it at once) after some code."""
    path = ROOT / "resnext_det" / "compat.py"
    code = f"import sys, runpy\n{before}\nfound = runpy.run_path({str(path)!r})\n{after}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_compat_says_how_to_get_detectron2():
    result = run_compat("sys.modules['detectron2'] = None")
    assert result.returncode != 0
    assert result.stderr.count("Traceback") == 1  # no "during handling of ..." before it
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: Detectron2 is not installed: run `make setup`")
    assert "pip install --no-build-isolation 'git+https://" in last


def test_compat_names_a_missing_dependency_of_detectron2():
    result = run_compat("sys.modules['fvcore'] = None")
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: Detectron2 does not load, for want of fvcore")
    assert "make setup" in last


def test_compat_is_quiet_and_leaves_model_zoo_alone():
    checks = (
        "import torch; torch.meshgrid(torch.arange(2), torch.arange(2))\n"
        "assert 'detectron2.modeling' in sys.modules\n"
        "assert 'detectron2.model_zoo' not in sys.modules\n"
    )
    result = run_compat("import warnings", checks)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_environment_record_is_text():
    from resnext_det.compat import describe_environment

    found = describe_environment()
    wanted = {"python", "torch", "torchvision", "detectron2", "numpy", "opencv", "pycocotools",
              "fvcore", "resnext_det", "platform", "cpu", "cuda", "gpu"}  # fmt: skip
    assert set(found) == wanted
    assert all(isinstance(value, str) and value and "\n" not in value for value in found.values())
    assert "unknown" not in found.values()
    assert re.fullmatch(r"\S+ \(.+, (with|without) compiled ops\)", found["detectron2"])


# ---- Makefile and .ci/run ----


def make(*arguments, folder=ROOT, **environment):
    if shutil.which("make") is None:
        pytest.skip("no make here")
    clean = {k: v for k, v in os.environ.items()
             if k not in ("MAKEFLAGS", "MAKELEVEL", "VENV", "PYTHON", "DETECTRON2")}  # fmt: skip
    return subprocess.run(
        ["make", *arguments], cwd=folder, env={**clean, **environment},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def ready(tmp_path):
    """A copy of the files make looks at, with the stamp of a finished setup."""
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    for name in ("Makefile", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "benchmarks").mkdir()
    for name in ("one.py", "_shared.py"):
        (tmp_path / "benchmarks" / name).write_text("")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".resnext_det-setup").write_text("")
    return tmp_path


def test_ci_makes_lint_and_test():
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert lines == ["set -eu", 'cd "$(dirname "$0")/.."', "make lint test"]


def test_setup_of_a_fresh_checkout(ready):
    (ready / ".venv" / ".resnext_det-setup").unlink()
    plan = make("-n", "setup", folder=ready).stdout
    steps = ["-m venv", "install torch torchvision", "install -e '.[dev]'",
             "requirements/install_detectron2.py ''"]  # fmt: skip
    places = [plan.index(step) for step in steps]
    assert places == sorted(places)


@pytest.mark.parametrize("target, command", [
    ("setup", ""),
    ("test", "OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2"),
    ("lint", ".venv/bin/python -m ruff check .\n.venv/bin/python -m ruff format --check ."),
    ("demo", ".venv/bin/python tools/demo.py"),
])  # fmt: skip
def test_targets_after_setup_run_only_their_command(ready, target, command):
    plan = make("-n", target, folder=ready).stdout.strip()
    assert plan == command or "Nothing to be done" in plan
    assert "install" not in plan


def test_bench_runs_the_scripts_but_not_their_helpers(ready):
    plan = make("-n", "bench", folder=ready).stdout
    assert "benchmarks/one.py" in plan
    assert "_shared.py" not in plan


def test_naming_another_detectron2_runs_the_setup_again(ready):
    stamp = ready / ".venv" / ".resnext_det-setup"
    asked = "requirements/install_detectron2.py '../d2'"
    assert asked in make("-n", "setup", "DETECTRON2=../d2", folder=ready).stdout
    assert asked in make("-n", "setup", folder=ready, DETECTRON2="../d2").stdout
    stamp.write_text("../d2\n")
    assert asked not in make("-n", "setup", "DETECTRON2=../d2", folder=ready).stdout
    assert "install" not in make("-n", "setup", folder=ready).stdout  # naming none keeps it


def test_a_failed_setup_is_not_taken_for_done(ready):
    python = ready / ".venv" / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\ncase "$1" in requirements/*) exit 1;; esac\n')
    python.chmod(0o755)
    assert make("setup", "DETECTRON2=../d2", folder=ready).returncode != 0
    assert "requirements/install" in make("-n", "setup", folder=ready).stdout


@pytest.mark.parametrize("python, message", [
    ("no-such-python", "Python 3.10 or newer is needed"),
    ("./old", "Python 3.10 or newer is needed"),
    ("./bare", "has no venv module"),
])  # fmt: skip
def test_an_unfit_python_is_one_line(ready, python, message):
    shutil.rmtree(ready / ".venv")
    for name, condition in (("old", "false"), ("bare", 'case "$2" in *venv*) false;; esac')):
        (ready / name).write_text(f"#!/bin/sh\n{condition}\n")
        (ready / name).chmod(0o755)
    result = make("setup", f"PYTHON={python}", folder=ready)
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert message in lines[0] and "make setup PYTHON=" in lines[0]
    assert not (ready / ".venv").exists()


def test_clean_keeps_data_and_results(ready):
    for name in ("output", "datasets", "build", ".pytest_cache", "resnext_det/__pycache__"):
        (ready / name).mkdir(parents=True)
    assert make("clean", folder=ready).returncode == 0
    left = {path.name for path in ready.iterdir()}
    assert {"output", "datasets", "benchmarks"} <= left
    assert not left & {".venv", "build", ".pytest_cache"}
    assert not (ready / "resnext_det" / "__pycache__").exists()


def test_license_is_the_whole_apache_text():
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "9. Accepting Warranty" in text and "END OF TERMS AND CONDITIONS" in text
