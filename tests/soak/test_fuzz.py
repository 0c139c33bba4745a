"""Guard every reader of user files: hostile input ends in a result or in one line of `InputError`.

What readers are given, and what counts as a hole, is told in fuzz_inputs.py and fuzz_children.py.
Environment: RESNEXT_DET_FUZZ_INPUTS, inputs a reader; RESNEXT_DET_SOAK_REPORT, a path to which the
figures are written, with "-fuzz" put before its ending.
"""

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fuzz_children
import pytest
from fuzz_children import Corpus, fuzz
from fuzz_inputs import CANARY, Reader, WrongResult, changed_bytes, fault_of_message

from resnext_det.errors import InputError

SOAK = Path(__file__).parent
CORPUS = SOAK / "corpus"
KEPT = 4000  # bytes of a file in the corpus, at most
FEW, MANY = 50, 10_000  # inputs a reader
READERS = ("config", "coco", "images", "weights", "proposals", "arrays", "shards", "lists")
READERS += ("results",)


def run(*arguments):
    """The command in a process of its own, where nothing but the readers has started threads."""
    command = [sys.executable, "-W", "ignore", str(SOAK / "fuzz_run.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=SOAK)
    print(done.stdout)
    return done


def fuzz_all(tmp_path, default):
    inputs = int(os.environ.get("RESNEXT_DET_FUZZ_INPUTS", default))
    report = os.environ.get("RESNEXT_DET_SOAK_REPORT")
    path = Path(report).with_stem(f"{Path(report).stem}-fuzz") if report else tmp_path / "f.json"
    done = run("--inputs", inputs, "--json", path, "--readers", *READERS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads(path.read_text())
    assert [entry["reader"] for entry in figures] == list(READERS)
    for entry in figures:
        assert entry["inputs"] == inputs == entry["results"] + entry["input_errors"]
        assert min(entry["results"], entry["input_errors"]) > 0, entry


def test_few_inputs_of_every_reader(tmp_path):
    fuzz_all(tmp_path, FEW)


@pytest.mark.long
def test_many_inputs_of_every_reader(tmp_path):
    fuzz_all(tmp_path, MANY)


# ---- the corpus ----


def test_the_corpus():
    """Each was a hole once (corpus/README.md has a line for it), and is refused now."""
    done = run("--inputs", 0, "--corpus", CORPUS, "--readers", *READERS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_corpus_is_small_and_told():
    text = (CORPUS / "README.md").read_text()
    files = [path for path in CORPUS.iterdir() if path.name != "README.md"]
    assert {path.name.split("-")[0] for path in files} <= set(READERS)
    assert len(files) > 30
    for path in files:
        assert path.stat().st_size < KEPT, path
        assert f"`{path.name}`" in text, path


# ---- the watch itself ----


def reader(read, memory=50 << 20):
    """Inputs are the number's two digits in a file."""

    def make(random, _, folder):
        path = folder / "x"
        path.write_bytes(changed_bytes(random, b"abcdefgh"))
        return path

    return Reader("watched", lambda _: None, make, read, ("x",), memory)


def refuse(path):
    raise InputError(path, "is wrong", "mend it")


def refuse_for_want_of_memory(path):
    try:
        bytearray(1 << 40)
    except MemoryError as error:
        raise InputError(path, "is too large", "make it small") from error


def take_memory(path):
    return bytearray(b"x") * (300 << 20)


def run_code(path):
    Path(CANARY).touch()


def hang(path):
    time.sleep(60)


def say(text):
    def read(path):
        raise InputError(path, text, "mend it")

    return read


def fail(error):
    def read(path):
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "hole"),
    [
        (fail(KeyError("a")), "KeyError"),
        (fail(SystemExit(0)), "SystemExit"),
        (fail(RecursionError("deep")), "RecursionError"),
        (fail(WrongResult("a box")), "wrong result: a box"),
        (say("two\nlines"), "message: the message is not one printable line"),
        (say("\x1b[2J"), "message: the message is not one printable line"),
        (say("\ud800"), "message: the message is not one printable line"),
        (say("long " * 1000), "message: the message has "),
        (refuse_for_want_of_memory, "memory: "),
        (take_memory, "memory: "),
        (run_code, "code was run"),
        (hang, "hang: "),
        (lambda path: os._exit(3), "death: the process ended (wait status 768)"),
        (lambda path: os.kill(os.getpid(), 9), "death: the process ended (wait status 9)"),
    ],
)
def test_holes_are_seen(monkeypatch, read, hole):
    if hole.startswith("hang"):  # 300 MiB take their time on a busy machine
        monkeypatch.setattr(fuzz_children, "SECONDS", 0.3)
    monkeypatch.setattr(fuzz_children, "OTHERS", 0)
    report = fuzz(reader(read), inputs=2)
    assert (report.inputs, report.results, report.input_errors) == (2, 0, 0)
    assert list(report.holes) == [0, 1]
    assert all(found.startswith(hole) for found in report.holes.values()), report.holes


def test_a_child_that_no_signal_reaches_is_ended(monkeypatch):
    monkeypatch.setattr(fuzz_children, "SECONDS", 0.2)
    monkeypatch.setattr(fuzz_children, "OTHERS", 0)

    def read(path):
        fuzz_children.signal.signal(fuzz_children.signal.SIGALRM, lambda *_: None)
        time.sleep(30)

    assert fuzz(reader(read), inputs=1).holes == {0: "death: hang that no signal ends"}


def test_address_space_is_bounded(monkeypatch):
    monkeypatch.setattr(fuzz_children, "OTHERS", 0)

    def read(path):
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        if not now < soft < now + 2 * fuzz_children.ADDRESS_SPACE:
            raise WrongResult(f"{soft} bytes, {now} are mapped")

    assert fuzz(reader(read), inputs=1).results == 1


def test_results_and_refusals_are_counted(monkeypatch):
    monkeypatch.setattr(fuzz_children, "OTHERS", 0)
    monkeypatch.setattr(fuzz_children, "ADDRESS_SPACE", 1 << 30)

    def read(path):
        if path.read_bytes()[:1] != b"a":
            refuse(path)

    report = fuzz(reader(read), inputs=60, batch=25)
    assert report.inputs == 60 == report.results + report.input_errors
    assert report.results > 10 and report.mends == {"mend it": report.input_errors}
    assert not report.holes


def test_an_input_is_made_again(tmp_path):
    made = [tmp_path / "1", tmp_path / "2"]
    for folder in made:
        folder.mkdir()
        fuzz_children.make_again(reader(refuse), 7, 3, folder)
    assert (made[0] / "x").read_bytes() == (made[1] / "x").read_bytes() != b"abcdefgh"


def test_corpus_files_are_read_as_they_are(tmp_path):
    (tmp_path / "watched-a").write_bytes(b"content")
    files = Corpus([tmp_path / "watched-a"])

    def read(path):
        if path.read_bytes() != b"content" or path.parent == tmp_path:
            raise WrongResult(str(path))

    assert fuzz(replace(reader(read), prepare=lambda _: files), inputs=1).results == 1


@pytest.mark.parametrize("text", ["one line", "é, 猫 and a\ttab"])
def test_messages_that_serve(text):
    assert fault_of_message(text) == ""
