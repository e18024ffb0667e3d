"""What the machine refuses is told in words that help, not in tracebacks."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

# Root may write everywhere; without these capabilities it has to ask like others.
AS_ANYBODY = (
    "import ctypes, os, sys\n"
    "for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH\n"
    "    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'pyhub', *sys.argv[1:]])"
)


def test_a_runtime_directory_that_cannot_be_written_is_told(apart: Any, runtime: Path) -> None:
    runtime.chmod(0o500)
    for command in (["sim"], ["broker"]):
        refused = apart.start_python("-c", AS_ANYBODY, *command)
        assert refused.end() == 1, refused
        assert str(runtime) in refused.err
        assert "ermission denied" in refused.err
        assert "Traceback" not in refused.err
    doctor = apart.start_python("-c", AS_ANYBODY, "doctor")
    assert doctor.end() in (0, 1)
    assert "Traceback" not in doctor.err
    runtime.chmod(0o700)
    assert apart("sim", "--shape", "16x16", "--frames", 1).code == 0


def test_a_terminal_that_knows_no_more_than_ascii_is_served(apart: Any) -> None:
    env = {"PYTHONIOENCODING": "ascii"}
    assert apart("sim", "--shape", "16x16", "--frames", 1, env=env).code == 0
    for command in (["doctor"], ["ls"], ["ls", "--programs"], ["--help"]):
        shown = apart.start(*command, env=env)
        assert shown.end() in (0, 1), shown
        assert "Error" not in shown.err, shown
        assert shown.out or shown.err


def test_a_runtime_directory_that_cannot_be_one_is_told(apart: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for path in (
        tmp_path / "file" / "rt",
        tmp_path / "file",
        tmp_path / "link",
        tmp_path / ("x" * 99),
    ):
        refused = apart.start("sim", "--frames", 1, env={"PYHUB_RUNTIME_DIR": str(path)})
        assert refused.end() == 1
        assert str(path) in refused.err
        assert "PYHUB_RUNTIME_DIR" in refused.err
        assert "Traceback" not in refused.err


def test_shared_memory_that_cannot_be_written_is_told(apart: Any) -> None:
    broker = apart.start("broker")
    broker.says("listens on")
    shm = Path(apart.environment["PYHUB_SHM_DIR"])
    shm.chmod(0o500)
    refused = apart.start_python("-c", AS_ANYBODY, "sim", "--frames", "1")
    assert refused.end() == 1, refused
    assert str(shm) in refused.err
    assert "Traceback" not in refused.err
    shm.chmod(0o700)
    assert broker.end(signal.SIGINT) == 0


def test_a_folder_that_cannot_be_written_is_told_before_the_recording(
    apart: Any, tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    refused = apart.start_python("-c", AS_ANYBODY, "record", "cam1", str(tmp_path / "out.h5"))
    assert refused.end() == 1, refused
    assert f"{str(tmp_path)!r} may not be written to" in refused.err
    tmp_path.chmod(0o700)
    assert os.listdir(tmp_path) == []


def test_full_shared_memory_is_told(apart: Any) -> None:
    # The limit of a file's size stands for a file system that is full.
    limited = (
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20,) * 2)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'pyhub', *sys.argv[1:]])"
    )
    refused = apart.start_python("-c", limited, "sim", "--shape", "1000x1000")
    assert refused.end() == 1, refused
    assert "SharedMemoryFull: no room for segment 'cam1'" in refused.err
    assert "pyhub clean" in refused.err
    fits = apart.start_python("-c", limited, "sim", "--shape", "16x16", "--frames", "1")
    assert fits.end() == 0, fits


def test_no_home_and_no_environment_are_enough(apart: Any) -> None:
    kept = {name: apart.environment[name] for name in ("PYHUB_SHM_DIR", "PYHUB_RUNTIME_DIR")}
    shell = apart.start_shell(
        f"exec env -i {' '.join(f'{name}={value}' for name, value in kept.items())} "
        f'"{sys.executable}" -m pyhub sim --frames 2 --shape 16x16'
    )
    assert shell.end() == 0, shell
    assert "publishing cam1" in shell.err
