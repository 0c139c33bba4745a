"""Bring Detectron2 into this Python's environment. Called by `make setup`; standard library only.

    python requirements/install_detectron2.py [REQUIREMENT]

REQUIREMENT (or the variable DETECTRON2) is whatever pip accepts: a folder, a git URL, a wheel. It
replaces what is there. Without one, a Detectron2 that loads is kept, and only where there is none
the build pinned in requirements/detectron2.txt is installed.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

PINNED = Path(__file__).resolve().with_name("detectron2.txt")
DISTRIBUTIONS = ("sal-detectron2", "detectron2")  # names under which `import detectron2` is had
ABSENT = 3  # exit status of PROBE; any other than 0 means "there, but does not load"
PROBE = f"""
import importlib.util, sys
spec = importlib.util.find_spec("detectron2")
if spec is None or spec.origin is None:  # nothing, or a folder without __init__.py
    sys.exit({ABSENT})
import detectron2.data, detectron2.engine, detectron2.evaluation, detectron2.modeling
print(detectron2.__version__, "at", spec.submodule_search_locations[0])
"""
# In the pinned wheel: a binary for CPython 3.10, and scripts that would shadow any `tools`.
UNWANTED = re.compile(r"tools/.*|detectron2/_C[^/]*\.(so|pyd)")

Runner = Callable[..., subprocess.CompletedProcess]


class SetupError(Exception):
    """What went wrong and the mend, in one line."""


def run(command: list[str], cwd: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def last_line(text: str) -> str:
    """The line that tells most: pip's last ERROR, else the last one that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no message"])[-1]


def probe(run: Runner) -> tuple[str, str]:
    """("works", version and place), ("absent", "") or ("broken", reason).

    Asked in a folder of its own, so that a `detectron2` beside the caller is not mistaken for it.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        result = run([sys.executable, "-W", "ignore", "-c", PROBE], cwd=elsewhere)
    if result.returncode == 0:
        return "works", last_line(result.stdout)
    if result.returncode == ABSENT:
        return "absent", ""
    return "broken", last_line(result.stderr)


def pip(run: Runner, *arguments: str, mend: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = run(command)
    if result.returncode != 0:
        sys.stderr.write(result.stdout + result.stderr)
        raise SetupError(f"pip {arguments[0]} failed: {last_line(result.stderr)}; {mend}")


def install_requirement(requirement: str, run: Runner) -> None:
    """Replace whatever Detectron2 is installed by `requirement`, once that has been built."""
    folder = Path(requirement).expanduser()
    if folder.exists():
        requirement = str(folder.resolve())
    with tempfile.TemporaryDirectory() as built:
        pip(run, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", built, requirement,
            mend="nothing was changed. Detectron2 needs a C++ compiler to build; "
                 "`make setup` without DETECTRON2 needs none")  # fmt: skip
        wheel = next(Path(built).glob("*.whl"))
        # Two distributions would share one folder: the old one has to go first.
        pip(run, "uninstall", "-q", "-y", *DISTRIBUTIONS, mend="remove it by hand, then try again")
        pip(run, "install", "-q", str(wheel),
            mend="`make setup` without DETECTRON2 brings the pinned build")  # fmt: skip


def install_pinned(run: Runner, site_packages: Path) -> None:
    """Install the pinned wheel on any Python: stage it, strip it, move it into place.

    Staging keeps `pip --target` away from site-packages, where it would meet existing folders
    (a `tools` package of the user's, say), and makes the last step one rename.
    """
    try:
        with tempfile.TemporaryDirectory(dir=site_packages, prefix=".detectron2-") as stage:
            pip(run, "install", "-q", "--no-deps", "--no-compile", "--only-binary=:all:",
                "--python-version", "3.10", "--implementation", "cp", "--abi", "none",
                "--platform", "any", "--target", stage, "--require-hashes", "-r", str(PINNED),
                mend="see that pip reaches its registry, or name a Detectron2 of your own: "
                     "make setup DETECTRON2=<folder or git URL>")  # fmt: skip
            move_into_place(strip(Path(stage)), site_packages)
    except PermissionError as error:
        raise SetupError(f"{site_packages} cannot be written; use a virtual environment") from error


def strip(folder: Path) -> Path:
    """Delete the unwanted files that the wheel's RECORD lists, from disk and from RECORD.

    Returns the wheel's dist-info folder. Files that RECORD does not list are never touched.
    """
    record = next(folder.glob("*.dist-info/RECORD"))
    with record.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    for name in (row[0] for row in rows if UNWANTED.fullmatch(row[0])):
        (folder / name).unlink(missing_ok=True)
    tools = folder / "tools"
    if tools.is_dir() and not any(tools.iterdir()):
        tools.rmdir()
    with record.open("w", newline="") as file:
        kept = (row for row in rows if not UNWANTED.fullmatch(row[0]))
        csv.writer(file, lineterminator="\n").writerows(kept)
    return record.parent


def move_into_place(dist_info: Path, site_packages: Path) -> None:
    """Rename dist-info, then the package: an interrupted setup leaves nothing importable."""
    package = site_packages / "detectron2"
    if package.exists():
        raise SetupError(f"{package} is in the way and is no package: remove it, then try again")
    target = site_packages / dist_info.name
    if target.exists():  # of a setup that was interrupted, or a package that was deleted by hand
        shutil.rmtree(target)
    os.replace(dist_info, target)
    os.replace(dist_info.parent / "detectron2", package)


def ensure(requirement: str, run: Runner = run, site_packages: Path | None = None) -> str:
    """Make `import detectron2` work and return what was done, in one line."""
    if requirement:
        install_requirement(requirement, run)
        done = f"installed {requirement}"
    else:
        state, detail = probe(run)
        if state == "works":
            return f"kept {detail}"
        if state == "broken":
            raise SetupError(
                f"the Detectron2 that is there does not load ({detail}); "
                f"remove it (pip uninstall {' '.join(DISTRIBUTIONS)}) or name another: "
                "make setup DETECTRON2=<folder or git URL>"
            )
        install_pinned(run, site_packages or Path(sysconfig.get_path("purelib")))
        done = "installed the pinned build"
    state, detail = probe(run)
    if state != "works":
        raise SetupError(f"{done}, but it does not load ({detail or 'not found'}); "
                         "try another: make setup DETECTRON2=<folder or git URL>")  # fmt: skip
    return f"{done}: {detail}"


def main() -> int:
    requirement = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("DETECTRON2", "")
    try:
        print(f"Detectron2: {ensure(requirement.strip())}")
    except SetupError as error:
        print(f"Detectron2: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
