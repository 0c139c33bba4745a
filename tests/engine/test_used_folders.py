"""Guard that no run is mixed with what is in its folder: it is refused, or the old one goes."""

import logging

import pytest

from resnext_det.config import load_cfg
from resnext_det.engine import lock, run
from resnext_det.engine.folders import new_file, new_folder
from resnext_det.engine.lock import unlock_folder
from resnext_det.engine.logs import LogFile, log_to, log_to_console
from resnext_det.engine.run import (
    record_evaluation,
    record_run,
    start_run,
    take_folder,
    write_json,
)
from resnext_det.errors import InputError


def cfg_in(folder, *opts):
    return load_cfg(None, ["OUTPUT_DIR", str(folder), "MODEL.DEVICE", "cpu", *opts])


@pytest.fixture(autouse=True)
def given_back(tmp_path):
    yield
    unlock_folder(tmp_path)


# ---- a new run ----

LEFT = ("run.json", "metrics.json", "model_0000007.pth", "model_best.pth", "model_final.pth")
LEFT += ("model_final.safetensors", "results.json")


@pytest.mark.parametrize("name", LEFT)
def test_what_another_run_left_is_not_mixed_with(tmp_path, name):
    """A checkpoint of it would be what a later --resume goes on from."""
    (tmp_path / name).write_text("{}")
    with pytest.raises(
        InputError, match=rf"^{tmp_path}: holds a run already \({name}\); add --res"
    ):
        start_run(cfg_in(tmp_path), new=True)
    start_run(cfg_in(tmp_path), new=False)


def test_other_files_do_not_matter(tmp_path):
    for name in ("notes.txt", "log.txt", "model.txt", ".lock"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "eval").mkdir()
    start_run(cfg_in(tmp_path), new=True)


DETECTION = ("DATASETS.TRAIN", "('a',)")


@pytest.mark.parametrize("ours, theirs", [((), DETECTION), (DETECTION, ())])
def test_the_other_tasks_run_is_not_gone_on_with(tmp_path, ours, theirs):
    """Both would write model_final.safetensors."""
    record_run(cfg_in(tmp_path, *theirs))
    before = (tmp_path / "config.yaml").read_bytes()
    kind = "detection" if theirs else "classification"
    with pytest.raises(InputError, match=rf"^{tmp_path}: holds a {kind} run \(config.yaml\); cho"):
        record_run(cfg_in(tmp_path, *ours))
    assert (tmp_path / "config.yaml").read_bytes() == before
    record_run(cfg_in(tmp_path, *theirs, "SEED", "3"))


@pytest.mark.parametrize("text", ["", "DATASETS: 3", "[", "{DATASETS: {}}"])
def test_a_config_that_says_nothing_of_its_task(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    record_run(cfg_in(tmp_path))


# ---- an evaluation ----


def test_of_an_earlier_evaluation_nothing_stays(tmp_path):
    record_evaluation(cfg_in(tmp_path))
    for name in ("inference/old/confusion.json", "pictures/worst.png", "results.json"):
        write_json(tmp_path / name, {})
    (tmp_path / "notes.txt").write_text("mine")
    record_evaluation(cfg_in(tmp_path))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"run.json", "config.yaml", "notes.txt", ".lock"}


def test_folders_of_others_are_not_removed(tmp_path):
    """Without a run.json they are not known to be an evaluation's."""
    write_json(tmp_path / "pictures" / "a.json", {})
    record_evaluation(cfg_in(tmp_path))
    assert (tmp_path / "pictures" / "a.json").exists()


# ---- two at once ----


def test_one_that_begins_while_another_runs_is_told_at_once(tmp_path, monkeypatch):
    held = InputError(tmp_path, "is in use", "wait")

    def refuse(*_):
        raise held

    monkeypatch.setattr(run, "check_free", refuse)
    for new in (True, False):
        with pytest.raises(InputError, match="is in use"):
            start_run(cfg_in(tmp_path), new=new)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "record", [record_run, record_evaluation, lambda cfg: take_folder(cfg.OUTPUT_DIR)]
)
def test_two_that_begin_together(tmp_path, monkeypatch, record):
    """Both have found the folder free; the second to write finds it locked, and writes nothing."""
    start_run(cfg_in(tmp_path), new=True)
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    monkeypatch.setattr(lock, "_take", lambda *_: False)
    with pytest.raises(InputError, match="is in use by"):
        record(cfg_in(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("new", [True, False])
def test_one_that_came_and_went_meanwhile(tmp_path, new):
    """While data of millions of images are checked, another one may begin there and be killed."""
    if not new:
        record_run(cfg_in(tmp_path))
    start_run(cfg_in(tmp_path), new=new)
    write_json(tmp_path / "run.json", {"kind": "training", "started": "meanwhile"})
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(InputError, match=rf"^{tmp_path}: another run was begun there while"):
        record_run(cfg_in(tmp_path))
    assert (tmp_path / "run.json").read_bytes() == before
    assert not lock._is_ours(tmp_path / lock.NAME)
    start_run(cfg_in(tmp_path), new=False)
    record_run(cfg_in(tmp_path))
    record_run(cfg_in(tmp_path))  # of the same process, which looked once


def test_a_folder_of_several_runs(tmp_path):
    log_to_console()
    assert take_folder(tmp_path / "study") == tmp_path / "study"
    assert (tmp_path / "study" / "log.txt").exists()
    assert lock._is_ours(tmp_path / "study" / lock.NAME)
    unlock_folder(tmp_path / "study")
    write_json(tmp_path / "run.json", {})
    with pytest.raises(InputError, match=rf"^{tmp_path}: holds a run \(run.json\); choose another"):
        take_folder(tmp_path)


# ---- outputs of tools ----


@pytest.mark.parametrize("make", [new_folder, new_file])
def test_outputs_are_new(tmp_path, make):
    assert make(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert (tmp_path / "a").is_dir()
    (tmp_path / "old").write_text("mine")
    for there in (tmp_path / "old", tmp_path):
        with pytest.raises(InputError, match=rf"^{there}: is there already; remove it, or choose"):
            make(there)
    with pytest.raises(InputError, match=r"old(/a)?: cannot be .* \(Not a directory\); choose an"):
        make(tmp_path / "old" / "a")


def test_of_two_tools_that_make_a_folder_one_is_refused(tmp_path, monkeypatch):
    folder, exists = tmp_path / "out", type(tmp_path).exists

    def then_made(path):
        found = exists(path)
        if path == folder:
            folder.mkdir()  # by the other one
        return found

    monkeypatch.setattr(type(tmp_path), "exists", then_made)
    with pytest.raises(InputError, match=rf"^{folder}: is there already"):
        new_folder(folder)


def test_an_empty_folder_is_taken(tmp_path):
    assert new_folder(tmp_path) == tmp_path


# ---- the log ----


def test_a_line_that_the_disk_does_not_take_ends_the_run(tmp_path, capfd):
    """In one line, whichever logger it came from; what follows goes to the console."""
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log_to_console()
    log_to(tmp_path)
    with pytest.raises(InputError) as caught:
        logging.getLogger("detectron2.engine").info("the first line")
    assert str(caught.value).startswith(
        f"{tmp_path / 'log.txt'}: cannot be written (No space left on device); free some space"
    )
    for name in ("resnext_det", "detectron2", "fvcore"):
        logging.getLogger(name).info("a line of %s behind it", name)
    said = capfd.readouterr()
    assert said.out.count("behind it") == 3 and "the first line" in said.out
    assert "Logging error" not in said.err and "Traceback" not in said.err


def test_other_faults_of_a_line_are_pythons(tmp_path, capfd):
    log = logging.getLogger("resnext_det.a_test")
    log.propagate = False  # pytest has a handler that lets such a line fail the test
    handler = LogFile(tmp_path / "log.txt")
    log.addHandler(handler)
    try:
        log.warning("%d", "no number")
        log.warning("then a surrogate: \udc80")
    finally:
        log.removeHandler(handler)
        log.propagate = True
        handler.close()
    assert "Logging error" in capfd.readouterr().err
    assert "then a surrogate: \\udc80" in (tmp_path / "log.txt").read_text()


def test_a_log_that_cannot_be_opened(tmp_path):
    (tmp_path / "log.txt").mkdir()
    log_to_console()
    with pytest.raises(InputError, match=r"log.txt: cannot be written \(Is a directory\)"):
        log_to(tmp_path)


def test_a_folder_that_nobody_can_make():
    """Not root either."""
    for record in (record_run, record_evaluation):
        with pytest.raises(InputError, match=r"^/proc/none/run: cannot be made \(.*OUTPUT_DIR"):
            record(cfg_in("/proc/none/run"))
