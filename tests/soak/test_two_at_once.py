"""Guard that a second run beside the first, in its folder, changes nothing and names the first."""

import os
import signal
import socket

import pytest
from kill_runs import LIMIT
from killed_sets import classification
from test_full_disk import ALONE, refused, run, signalled


@pytest.mark.slow
def test_the_second_is_refused_and_the_first_ends_well(tmp_path):
    """The first is halted meanwhile, or it would be over before the second has begun."""
    pipeline, folder = classification(tmp_path / "data", **ALONE), tmp_path / "run"
    first, streams = signalled(pipeline, folder, folder, signal.SIGSTOP)
    try:
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        for flags in ((), ("--resume",)):
            line = refused(run(pipeline, folder, *flags))
            assert line == (
                f"{folder}: is in use by process {first.pid} on {socket.gethostname()} (.lock); "
                "wait for it or end it, or choose another OUTPUT_DIR"
            )
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
        os.kill(first.pid, signal.SIGCONT)
        assert first.wait(LIMIT) == 0, (streams / "err").read_text()
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
    done = run(pipeline, folder, "--resume")  # nobody has it any more
    assert done.returncode == 0, done.stderr
