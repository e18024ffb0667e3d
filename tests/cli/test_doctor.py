"""The doctor finds what is wrong with a machine, and says for each thing what to do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SUBJECTS = {
    "versions", "libzmq", "shared memory", "segments", "leases", "open files", "namespaces",
    "runtime directory", "broker", "hub", "channels",
}  # fmt: skip
# Runs a command under limits: open files, sizes of files.
LIMITED = (
    "import os, resource, sys\n"
    "resource.setrlimit(resource.RLIMIT_{0}, (int(sys.argv[1]),) * 2)\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'pyhub', *sys.argv[2:]])"
)


def findings(doctor: Any) -> dict[str, list[tuple[str, str, str]]]:
    """Return verdict, fact and advice of each finding by its subject."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    text = (
        r"^ {0,2}(ok|warn|fail)  ([a-z ]+): (.*)\n"
        r"((?:      → (?:.|\n)*?)?)(?=^ {0,2}(?:ok|warn|fail)  |\Z)"
    )
    for verdict, subject, fact, advice in re.findall(text, doctor.out, re.MULTILINE):
        found.setdefault(subject, []).append((verdict, fact, advice))
    return found


def check_advice(found: dict[str, list[tuple[str, str, str]]]) -> None:
    for subject, several in found.items():
        for verdict, fact, advice in several:
            assert (verdict == "ok") == (not advice.strip(" →\n")), (subject, fact, advice)


def test_it_looks_at_everything_and_is_content_with_a_sound_machine(apart: Any) -> None:
    doctor = apart("doctor")
    assert doctor.code == 0, doctor
    found = findings(doctor)
    assert set(found) >= SUBJECTS
    assert all(verdict != "fail" for several in found.values() for verdict, _, _ in several)
    assert apart.environment["PYHUB_SHM_DIR"] in found["shared memory"][0][1]
    assert found["channels"] == [("ok", "0 live", "")]
    assert "none runs" in found["broker"][0][1]
    assert found["hub"] == [("ok", "no broker runs, so no programs are connected", "")]
    assert "site configuration" not in found
    check_advice(found)


def test_it_tells_of_the_broker_and_of_channels(apart: Any) -> None:
    broker = apart.start("broker")
    broker.says("listens on")
    live = apart.start("sim", "--name", "live", "--shape", "16x16")
    dead = apart.start("sim", "--name", "dead", "--shape", "16x16")
    live.says("publishing")
    dead.says("publishing")
    dead.end(signal.SIGKILL)
    bad = Path(apart.environment["PYHUB_SHM_DIR"]) / f"pyhub.{os.geteuid()}.bad"
    bad.write_bytes(b"no segment")
    doctor = apart("doctor")
    assert doctor.code == 0, "warnings are no failure"
    found = findings(doctor)
    assert found["broker"][0][:2] == (
        "ok",
        f"pid {broker.pid} at ipc://{apart.environment['PYHUB_RUNTIME_DIR']}/broker.sock",
    )
    # A detector that was killed the broker may know yet, for a moment.
    assert re.match("this user's broker answers; [12] programs connected", found["hub"][0][1])
    ((verdict, fact, advice),) = found["channels"]
    assert (verdict, fact) == ("warn", "1 live, left by dead producers: dead, unreadable: bad")
    assert "pyhub clean" in advice
    check_advice(found)
    assert (live.end(signal.SIGINT), broker.end(signal.SIGINT)) == (0, 0)


def test_it_tells_of_the_configuration_that_the_broker_was_given(
    apart: Any, tmp_path: Path, runtime: Path
) -> None:
    site = tmp_path / "broker.yaml"
    site.write_text(
        f"runtime_dir: {runtime}\nlisten: ['tcp://127.0.0.1:*']\nclients:\n"
        "  - {name: hall, role: viewer, key: 'Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID'}\n"
    )
    site.chmod(0o644)
    broker = apart.start("broker", "--config", site.name, cwd=tmp_path)
    broker.says("listens on")
    found = findings(apart("doctor"))
    fact = f"{site}: 1 clients, listens on tcp://127.0.0.1:*"
    assert found["site configuration"] == [("ok", fact, "")]
    site.write_text("clients: 3")
    doctor = apart("doctor")
    assert doctor.code == 0, "the broker goes on with what it has"
    ((verdict, fact, _),) = findings(doctor)["site configuration"]
    assert verdict == "warn"
    assert fact.startswith(f"{site}: clients")
    check_advice(findings(doctor))
    assert broker.end(signal.SIGINT) == 0


def test_a_broker_that_does_not_answer_fails(apart: Any) -> None:
    broker = apart.start("broker")
    broker.says("listens on")
    assert findings(apart("doctor"))["hub"][0][0] == "ok", "the control"
    broker.suspend()
    doctor = apart("doctor")
    broker.resume()
    assert doctor.code == 1
    ((verdict, fact, advice),) = findings(doctor)["hub"]
    assert verdict == "fail"
    assert "did not answer within 2 s" in fact
    assert f"kill -9 {broker.pid}" in advice
    assert broker.end(signal.SIGINT) == 0


def test_a_runtime_directory_that_is_open_to_others_fails(apart: Any, runtime: Path) -> None:
    runtime.chmod(0o755)
    doctor = apart("doctor")
    assert doctor.code == 1
    found = findings(doctor)
    ((verdict, fact, advice),) = found["runtime"]
    assert verdict == "fail"
    assert f"{runtime} has mode 0755" in fact
    assert f"chmod 700 {runtime}" in advice
    assert "hub" not in found, "it is told once"
    check_advice(found)
    for refused in apart.side_by_side(["sim"], ["clean"], ["broker"], ["tap", "cam1"]):
        assert refused.code == 1
        assert f"chmod 700 {runtime}" in refused.err
        assert "Traceback" not in refused.err


def test_shared_memory_that_is_not_there_fails(apart: Any, tmp_path: Path) -> None:
    nowhere = {"PYHUB_SHM_DIR": str(tmp_path / "nowhere")}
    doctor = apart("doctor", env=nowhere)
    assert doctor.code == 1
    found = findings(doctor)
    assert found["shared memory"][0][:2] == ("fail", f"there is no directory {tmp_path}/nowhere")
    check_advice(found)
    broker = apart.start("broker")
    broker.says("listens on")
    commands = (["sim"], ["clean"], ["ls"], ["info", "cam1"])
    for refused in apart.side_by_side(*commands, env=nowhere):
        assert refused.code in (1, 3), refused
        assert f"{tmp_path}/nowhere" in refused.err
        assert "Traceback" not in refused.err
    assert broker.end(signal.SIGINT) == 0


def test_a_lease_file_that_others_may_write_fails(apart: Any) -> None:
    leases = Path(apart.environment["PYHUB_SHM_DIR"]) / f"pyhub.{os.geteuid()}..leases"
    leases.touch()
    leases.chmod(0o666)
    doctor = apart("doctor")
    assert doctor.code == 1
    found = findings(doctor)
    assert found["leases"][0][0] == "fail"
    assert str(leases) in found["leases"][0][1]
    check_advice(found)


@pytest.mark.parametrize(
    ("limit", "value", "subject", "fact", "advice"),
    [
        ("NOFILE", 256, "open files", "256 (at most 256)", "ulimit -n 1024"),
        ("FSIZE", 1 << 30, "file size", f"files may have {1 << 30} bytes", "ulimit -f unlimited"),
    ],
)
def test_tight_limits_are_warned_of(
    apart: Any, limit: str, value: int, subject: str, fact: str, advice: str
) -> None:
    doctor = apart.start_python("-c", LIMITED.format(limit), str(value), "doctor")
    assert doctor.end() == 0, doctor
    found = findings(doctor)
    ((verdict, said, to_do),) = found[subject]
    assert verdict == "warn"
    assert fact in said
    assert advice in to_do
    check_advice(found)


def test_shared_memory_on_a_disk_is_warned_of(apart: Any, tmp_path: Path) -> None:
    kinds = {
        path: subprocess.check_output(["stat", "-f", "-c", "%T", path], text=True).strip()
        for path in (tmp_path, Path(__file__).parent)
    }
    doctor = apart("doctor", env={"PYHUB_SHM_DIR": str(tmp_path)})
    warned = "frames are written to a disk" in doctor.out
    assert warned == (kinds[tmp_path] not in ("tmpfs", "ramfs"))


def test_the_size_of_shared_memory_is_judged(apart: Any, tmp_path: Path) -> None:
    # A small file system, if this user may mount one; else the one that is there.
    mount = f'mount -t tmpfs -o size=64m,mode=700 none "{tmp_path}"'
    for unshare in (["unshare", "-m"], ["unshare", "-rm"]):
        if (
            subprocess.run(
                [*unshare, "sh", "-c", mount], capture_output=True, check=False
            ).returncode
            == 0
        ):
            script = f'{mount} && exec "{sys.executable}" -m pyhub doctor'
            words = " ".join(unshare)
            doctor = apart.start_shell(
                f"exec {words} sh -c '{script}'", env={"PYHUB_SHM_DIR": str(tmp_path)}
            )
            doctor.end()
            total = 64 << 20
            break
    else:
        doctor = apart("doctor")
        usage = os.statvfs(apart.environment["PYHUB_SHM_DIR"])
        total = usage.f_blocks * usage.f_frsize
    verdict, fact, advice = findings(doctor)["shared memory"][0]
    assert f"of {total / (1 << 30):.2f} GiB free, tmpfs" in fact
    if total < 1 << 30:
        assert verdict == "warn"
        assert "remount,size=8G" in advice
        assert "--shm-size" in advice
    assert doctor.code == 0
