"""Guard the promise that a fault is one line: what is wrong, where, and how to mend it."""

import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from resnext_det.errors import InputError, Interrupted

SOURCE = Path(__file__).parents[1] / "resnext_det" / "errors.py"
REFUSAL = 'InputError("a.json", "it is empty", "write it again")'
LINE = "error: a.json: it is empty; write it again\n"

# The module by its file: it imports nothing of ours, and a test need not wait for Detectron2.
TOOL = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("resnext_det.errors", {source!r})
errors = importlib.util.module_from_spec(spec)
spec.loader.exec_module(errors)
InputError, Interrupted = errors.InputError, errors.Interrupted

@errors.exit_cleanly
def main():
    print(sys.argv[1:])
    {body}

main()
"""


def run_tool(body, *words):
    script = TOOL.format(source=str(SOURCE), body=body)
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_text_holds_file_fault_and_mend():
    error = InputError(Path("folder") / "a.json", "it is empty", "write it again")
    assert str(error) == "folder/a.json: it is empty; write it again"
    assert (error.file, error.found, error.mend) == (
        "folder/a.json",
        "it is empty",
        "write it again",
    )
    assert isinstance(error, ValueError)


def test_it_pickles():
    error = InputError("a.json", "it is empty", "write it again")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is InputError and str(again) == str(error)
    assert (again.file, again.found, again.mend) == (error.file, error.found, error.mend)


def refuse(file):
    raise InputError(file, "it is empty", "write it again")


def test_it_comes_whole_from_another_process():
    """A data worker's refusal is the user's as much as the main process's."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        with pytest.raises(InputError) as refused:
            pool.submit(refuse, "a.json").result()
    assert refused.value.mend == "write it again"


def test_an_input_error_is_one_line_and_status_2():
    done = run_tool(f"raise {REFUSAL}")
    assert (done.returncode, done.stderr) == (2, LINE)


def test_debug_keeps_the_traceback():
    done = run_tool(f"raise {REFUSAL}", "--debug", "SEED", "1")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and LINE.removeprefix("error: ") in done.stderr
    assert done.stdout == "['SEED', '1']\n"  # the tool's own parser does not see it


def test_debug_may_stand_anywhere():
    done = run_tool(f"raise {REFUSAL}", "SEED", "1", "--debug")
    assert done.returncode == 1 and done.stderr.startswith("Traceback")
    assert done.stdout == "['SEED', '1']\n"


WRAPPED = r"""raise RuntimeError(
    "Traceback (most recent call last):\n  File x\n"
    "resnext_det.errors.InputError: a.json: it is empty; write it again\n"
    )"""


def test_an_input_error_that_arrives_as_text():
    """So torch hands over what happened in a worker or in another training process."""
    done = run_tool(WRAPPED)
    assert (done.returncode, done.stderr) == (2, LINE)
    done = run_tool(WRAPPED, "--debug")
    assert done.returncode == 1 and "RuntimeError" in done.stderr


@pytest.mark.parametrize("error", ['ValueError("ours")', 'RuntimeError("InputError: no")'])
def test_a_fault_of_ours_keeps_its_traceback(error):
    done = run_tool(f"raise {error}")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and error.split("(")[0] in done.stderr


@pytest.mark.parametrize(
    "error, line",
    [
        ("KeyboardInterrupt", "stopped: interrupted\n"),
        ('Interrupted("saved iteration 7")', "stopped: saved iteration 7\n"),
    ],
)
def test_an_interrupt_is_one_line_and_status_130(error, line):
    """130 is what a shell expects after Ctrl-C."""
    done = run_tool(f"raise {error}")
    assert (done.returncode, done.stderr) == (130, line)
    assert issubclass(Interrupted, KeyboardInterrupt)


HALF_MADE = """
    class Half:
        def __del__(self):
            raise AttributeError("_workers")
    half = Half()
    raise KeyboardInterrupt"""


def test_what_is_half_made_at_an_interrupt_says_nothing():
    """So is a loader of torch's whose workers are just being started."""
    done = run_tool(HALF_MADE)
    assert (done.returncode, done.stderr) == (130, "stopped: interrupted\n")


def test_a_tool_that_works():
    done = run_tool("pass", "SEED", "1")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "['SEED', '1']\n")


def test_what_a_stranger_wrote_does_not_move_the_terminal():
    done = run_tool('raise InputError("a\\x1b[2J\\n.pth", "holds \\u202e", "é")')
    assert done.stderr == "error: a\\x1b[2J\\n.pth: holds \\u202e; é\n"


def test_an_interrupt_during_the_imports_is_one_line(tmp_path):
    """They take seconds, in which a mistyped command is stopped."""
    (tmp_path / "resnext_det").mkdir()
    (tmp_path / "tools").mkdir()
    (tmp_path / "resnext_det" / "errors.py").write_text(SOURCE.read_text())
    start = "from .errors import hear_interrupts\nhear_interrupts()\nraise KeyboardInterrupt\n"
    (tmp_path / "resnext_det" / "__init__.py").write_text(start)
    (tmp_path / "tools" / "a.py").write_text("import resnext_det\n")
    (tmp_path / "b.py").write_text("import resnext_det\n")  # a script of somebody else's
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for script, lines in (("tools/a.py", 1), ("b.py", 8)):
        command = [sys.executable, str(tmp_path / script)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == -signal.SIGINT
        assert ("Traceback" in done.stderr) == (lines > 1), done.stderr
        assert lines > 1 or done.stderr == "stopped: interrupted\n"


def test_the_package_begins_with_it():
    text = (SOURCE.parent / "__init__.py").read_text()
    assert 0 < text.index("\nhear_interrupts()") < text.index("from . import compat")
