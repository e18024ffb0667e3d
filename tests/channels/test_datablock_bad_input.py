"""What is damaged, foreign, full or forbidden gets an error that says what to do."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyhub import (
    AbiMismatch,
    AccessDenied,
    CapacityError,
    DataBlockConsumer,
    DataBlockProducer,
    InvalidName,
    LayoutError,
    NamespaceMismatch,
    PyhubError,
    SegmentDamaged,
    SegmentExists,
    SegmentNotFound,
    SegmentStale,
    SharedMemoryFull,
)
from pyhub._core import remove_dead
from pyhub.names import lease_path, segment_names, segment_path

Start = Callable[..., Any]

# Offsets in the header: include/pyhub/segment.h, datablock.h.
ABI, BYTE_ORDER, KIND, CONSTANT_SIZE, CHECKSUM, MUTEX_SIZE, POINTER_SIZE = 8, 12, 16, 20, 24, 28, 32
SEGMENT_SIZE, PID_NAMESPACE, BOOT_ID = 40, 48, 72
FLEX_CAPACITY, FLEX_OFFSET, CAPACITY, BUFFER_OFFSET = 256, 272, 280, 296
CONTROL_OFFSET, ITEMSIZE, SHAPE, NDIM, N_SLOTS, DTYPE = 304, 328, 336, 400, 404, 408
CONSTANTS = 1536

READ: Callable[[], Any] = lambda: DataBlockConsumer.attach("cam")  # noqa: E731
WRITE: Callable[[], Any] = lambda: DataBlockProducer.attach("cam")  # noqa: E731
CREATE: Callable[[], Any] = lambda: DataBlockProducer.create("cam", 4)  # noqa: E731
either = pytest.mark.parametrize("attach", [READ, WRITE], ids=["reader", "producer"])


@pytest.fixture(autouse=True)
def no_ruins(shm: Path) -> Iterator[None]:
    """A test that fails leaves nothing for the next one to fail on."""
    yield
    for path in [segment_path("cam"), segment_path("cam", 4242), shm / "elsewhere"]:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


@pytest.fixture
def cam() -> Iterator[DataBlockProducer]:
    with DataBlockProducer.create("cam", dtype="<u2", shape=(4, 3), slots=3) as producer:
        producer.put(np.full((4, 3), 7, "<u2"), {"value": 7})
        yield producer
        # Whatever the test made of it, its memory is whole for who has it mapped.
        assert producer.header().structured_buffer_version == 1


@pytest.fixture
def file(cam: DataBlockProducer) -> Path:
    """The segment's file, to be damaged."""
    return segment_path("cam")


@pytest.fixture
def nothing_left(shm: Path) -> Iterator[None]:
    """Of the channel, no file is left, under any name."""
    yield
    assert [path for path in shm.iterdir() if not path.name.endswith("..leases")] == []


def overwrite(file: Path, offset: int, raw: bytes) -> None:
    with open(file, "r+b") as opened:
        opened.seek(offset)
        opened.write(raw)


def forge(file: Path, offset: int, raw: bytes) -> None:
    """Change constants as somebody would who knows the checksum, too."""
    overwrite(file, offset, raw)
    overwrite(file, CHECKSUM, bytes(4))
    with open(file, "rb") as opened:
        overwrite(file, CHECKSUM, zlib.crc32(opened.read(CONSTANTS)).to_bytes(4, "little"))


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


# Names and layouts


@pytest.mark.parametrize("name", ["", ".x", "a/b", "../x", "a b", "x" * 201, "\0"], ids=repr)
def test_an_illegal_name_is_refused_everywhere(name: str) -> None:
    for call in (
        lambda: DataBlockProducer.create(name, 4),
        lambda: DataBlockProducer.attach(name),
        lambda: DataBlockConsumer.attach(name),
        lambda: DataBlockConsumer(name),
    ):
        with pytest.raises(InvalidName, match="cannot be the name of a channel"):
            call()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": object, "shape": 3}, LayoutError, "no Python objects"),
        ({"dtype": [("a", "O")], "shape": 3}, LayoutError, "no Python objects"),
        ({"dtype": "no dtype", "shape": 3}, LayoutError, "no numpy dtype"),
        ({"dtype": "u1", "shape": -1}, LayoutError, "not one a frame can have"),
        ({"dtype": "u1", "shape": (1,) * 9}, LayoutError, "up to 8 dimensions"),
        ({"structured_buffer_size": 4, "shape": 3}, LayoutError, "not both"),
        ({"structured_buffer_size": -4}, (CapacityError, LayoutError), "-4"),
        ({"flexible_zone_size": -4}, CapacityError, "-4"),
        ({"slots": 0}, CapacityError, "slots=0: a channel has 1 to 65536"),
        ({"slots": 65537}, CapacityError, "slots=65537"),
        ({"shape": 2**62}, CapacityError, "beyond what a segment can have"),
        ({"shape": (2**40, 2**40)}, CapacityError, "beyond what a segment can have"),
        ({"flexible_zone_size": 2**63}, CapacityError, "beyond what a segment can have"),
        ({"flexible_zone_size": 2**70}, CapacityError, "beyond what a segment can have"),
        ({"structured_buffer_size": 2**70}, CapacityError, "beyond what a segment can have"),
    ],
    ids=str,
)
def test_what_describes_no_channel_is_refused(
    nothing_left: None, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        DataBlockProducer.create("cam", **options)


def test_an_unknown_channel_is_named_with_the_way_to_find_the_right_one() -> None:
    for attach in (READ, WRITE):
        with pytest.raises(SegmentNotFound, match=r"no channel 'cam'.*\n.*pyhub ls"):
            attach()


def test_a_name_taken_by_a_living_producer_is_refused_with_its_pid(cam: DataBlockProducer) -> None:
    with pytest.raises(SegmentExists, match=rf"living producer \(pid {os.getpid()}\)"):
        CREATE()


# Segments of others


@either
def test_a_segment_of_another_abi_is_refused_with_both_versions(
    file: Path, attach: Callable[[], Any]
) -> None:
    overwrite(file, ABI, u32(7))
    with pytest.raises(AbiMismatch, match=r"has layout 7, this pyhub reads layout \d.*\n.*update"):
        attach()


@either
@pytest.mark.parametrize(
    ("offset", "value"),
    [(BYTE_ORDER, 0x04030201), (MUTEX_SIZE, 41), (POINTER_SIZE, 4)],
    ids=["byte order", "libc", "pointer size"],
)
def test_a_segment_of_another_kind_of_machine_is_refused(
    file: Path, attach: Callable[[], Any], offset: int, value: int
) -> None:
    forge(file, offset, u32(value))
    with pytest.raises(AbiMismatch, match="libc and byte order"):
        attach()


@either
def test_a_segment_that_is_no_datablock_is_refused(file: Path, attach: Callable[[], Any]) -> None:
    forge(file, KIND, u32(99))
    with pytest.raises(LayoutError, match="is not a DataBlock"):
        attach()


@either
def test_a_segment_from_before_the_reboot_is_refused(file: Path, attach: Callable[[], Any]) -> None:
    forge(file, BOOT_ID, bytes(16))
    with pytest.raises(SegmentStale, match=r"before the last reboot.*\n.*pyhub clean"):
        attach()


def test_a_segment_from_before_the_reboot_does_not_keep_its_name(cam: DataBlockProducer) -> None:
    """Whatever its lease: no process outlives a reboot."""
    forge(segment_path("cam"), BOOT_ID, bytes(16))
    with DataBlockProducer.create("cam", 4) as after, DataBlockConsumer.attach("cam") as view:
        after.put(np.zeros(4, "u1"))
        assert view.read(0).data.shape == (4,)


def test_a_producer_of_another_pid_namespace_is_refused(file: Path) -> None:
    """Its lock would have two owners at once: reliability 0.1."""
    forge(file, PID_NAMESPACE, u64(1))
    with pytest.raises(NamespaceMismatch, match=r"another PID namespace.*\n.*--pid=container"):
        WRITE()


def test_a_reader_of_another_pid_namespace_is_welcome(file: Path) -> None:
    """It takes no lock."""
    forge(file, PID_NAMESPACE, u64(1))
    with READ() as view:
        assert view.read(0).flex == {"value": 7}


def test_a_segment_of_another_user_is_refused(cam: DataBlockProducer) -> None:
    """Somebody else put a file where user 4242's channel is looked for."""
    shutil.copy(segment_path("cam"), segment_path("cam", 4242))
    with pytest.raises(AccessDenied, match=r"belongs to another user.*\n.*owner_uid"):
        DataBlockConsumer.attach("cam", owner_uid=4242)


@either
@pytest.mark.parametrize("mode", [0o622, 0o602, 0o620, 0o666, 0o777], ids=oct)
def test_a_segment_that_others_may_write_is_not_trusted(
    file: Path, attach: Callable[[], Any], mode: int
) -> None:
    file.chmod(mode)
    with pytest.raises(AccessDenied, match=r"written by others.*\n.*pyhub clean --force cam"):
        attach()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644], ids=oct)
def test_a_segment_that_others_may_only_read_is_trusted(file: Path, mode: int) -> None:
    file.chmod(mode)
    with READ() as view:
        assert view.read(0).flex == {"value": 7}


def test_a_segment_is_made_for_its_user_only(file: Path) -> None:
    assert file.stat().st_mode & 0o7777 == 0o600
    assert file.stat().st_uid == os.geteuid()


# What is no plain file of its own


def as_symlink(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def as_hard_link(file: Path) -> None:
    os.link(file, file.with_name("elsewhere"))


def as_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def as_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


def as_socket(file: Path) -> None:
    file.unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(file))


@pytest.mark.parametrize("attach", [READ, WRITE, CREATE], ids=["reader", "producer", "creator"])
@pytest.mark.parametrize("become", [as_symlink, as_directory, as_fifo, as_socket])
def test_what_is_no_plain_file_is_refused_and_left_alone(
    file: Path, become: Callable[[Path], None], attach: Callable[[], Any]
) -> None:
    become(file)
    before = file.lstat()
    with pytest.raises((AccessDenied, SegmentDamaged, SegmentExists)) as caught:
        attach()
    assert "\n  " in str(caught.value), "it does not say what to do"
    assert file.lstat().st_ino == before.st_ino


@either
def test_a_segment_with_a_second_name_is_not_trusted(
    cam: DataBlockProducer, shm: Path, attach: Callable[[], Any]
) -> None:
    as_hard_link(segment_path("cam"))
    with pytest.raises(AccessDenied):
        attach()
    (shm / "elsewhere").unlink()
    attach().close()


# Damage


@either
@pytest.mark.parametrize("size", [0, 1, 8, 100, 256, 1535, 1536, 1600, 4096, 8192])
def test_a_truncated_segment_is_refused(
    cam: DataBlockProducer, attach: Callable[[], Any], size: int
) -> None:
    """Of a copy: truncating the mapped file itself is what only its own user can do."""
    file = segment_path("cam")
    raw = file.read_bytes()
    file.unlink()
    file.touch(0o600)
    file.write_bytes(raw[:size])
    with pytest.raises(SegmentDamaged, match="pyhub clean --force"):
        attach()
    assert file.stat().st_size == size


@either
@pytest.mark.parametrize("n_more", [1, 4096])
def test_an_extended_segment_is_refused(file: Path, attach: Callable[[], Any], n_more: int) -> None:
    with open(file, "ab") as opened:
        opened.write(bytes(n_more))
    with pytest.raises(SegmentDamaged, match="shorter or longer than its header says"):
        attach()


@either
@pytest.mark.parametrize("seed", range(3))
def test_a_file_of_random_bytes_is_refused(
    cam: DataBlockProducer, attach: Callable[[], Any], seed: int
) -> None:
    file = segment_path("cam")
    file.unlink()
    file.touch(0o600)
    file.write_bytes(random.Random(seed).randbytes(20000))
    with pytest.raises(SegmentDamaged, match="not a pyhub segment"):
        attach()
    with pytest.raises(SegmentDamaged, match="not a pyhub segment"):
        CREATE()
    assert file.stat().st_size == 20000, "what is not ours is not removed"


@either
def test_a_header_that_was_damaged_by_hand_is_refused(
    file: Path, attach: Callable[[], Any]
) -> None:
    overwrite(file, CAPACITY, u64(1 << 40))
    with pytest.raises(SegmentDamaged, match=r"contradicts itself.*\n.*start again"):
        attach()


def test_no_byte_of_the_constants_can_be_changed_unnoticed(file: Path) -> None:
    whole = file.read_bytes()[:CONSTANTS]
    for offset in range(0, CONSTANTS, 7):
        overwrite(file, offset, bytes([whole[offset] ^ 0x55]))
        with pytest.raises(PyhubError):
            READ()
        overwrite(file, offset, whole[offset : offset + 1])
    READ().close()


FORGERIES = {
    "capacity": (CAPACITY, u64(25)),
    "huge capacity": (CAPACITY, u64(2**63)),
    "flex capacity": (FLEX_CAPACITY, u64(2**40)),
    "flex offset": (FLEX_OFFSET, u64(0)),
    "buffer offset": (BUFFER_OFFSET, u64(2**40)),
    "control offset": (CONTROL_OFFSET, u64(2**63)),
    "shape": (SHAPE, u64(2**62)),
    "one row more": (SHAPE, u64(5)),
    "dimensions": (NDIM, u32(200)),
    "slots": (N_SLOTS, u32(65535)),
    "no slots": (N_SLOTS, u32(0)),
    "no item size": (ITEMSIZE, u64(0)),
    "item size": (ITEMSIZE, u64(8)),
    "segment size": (SEGMENT_SIZE, u64(4096)),
    "constant size": (CONSTANT_SIZE, u32(100)),
    "dtype of objects": (DTYPE, b"|O\0\0\0"),
    "no dtype": (DTYPE, b"??\0\0\0"),
    "empty dtype": (DTYPE, bytes(10)),
    "dtype that is no text": (DTYPE, b"\xff\xfe\0"),
    "endless dtype": (DTYPE, b"x" * 1024),
    "dtype of another size": (DTYPE, b"<f8\0"),
}


@either
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_made_up_header_with_a_right_checksum_is_refused(
    file: Path, attach: Callable[[], Any], forgery: str
) -> None:
    """Decision 4. Every number that leads into the mapping is computed again."""
    forge(file, *FORGERIES[forgery])
    with pytest.raises((SegmentDamaged, LayoutError)):
        attach()


def test_a_damaged_slot_table_is_survived(cam: DataBlockProducer) -> None:
    """Words that change are no constants: whoever may write can make them anything."""
    file = segment_path("cam")
    whole = file.read_bytes()
    generator = random.Random(1)
    with READ() as view:
        for _ in range(2000):
            start = generator.randrange(CONSTANTS + 64 + 192, 4096 - 8)
            overwrite(file, start, generator.randbytes(8))
            try:
                with DataBlockConsumer.attach("cam") as other:
                    other.header()
                    other.read(0)
                view.latest(0).copy()
                view.get_flexible_zone_data()
            except PyhubError:
                continue
            finally:
                overwrite(file, CONSTANTS + 64, whole[CONSTANTS + 64 : 4096])
        assert view.read(0).flex == {"value": 7}


def test_a_damaged_segment_is_never_removed_by_a_mistake(file: Path) -> None:
    overwrite(file, CAPACITY, u64(1))
    with pytest.raises(PyhubError):
        CREATE()
    with pytest.raises(PyhubError):
        remove_dead(file, lease_path())
    assert file.exists()


# Directories and lock files


def test_a_directory_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYHUB_SHM_DIR", "/nonexistent/shm")
    for call in (CREATE, WRITE):
        with pytest.raises(SegmentNotFound, match=r"no directory /nonexistent/shm.*\n.*SHM_DIR"):
            call()
    with pytest.raises(SegmentNotFound):
        READ()


def test_a_lock_file_that_others_may_write_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYHUB_SHM_DIR", str(tmp_path))
    lease_path().touch()
    lease_path().chmod(0o666)
    with pytest.raises(AccessDenied):
        CREATE()
    lease_path().unlink()
    lease_path().symlink_to("elsewhere")
    with pytest.raises(AccessDenied):
        CREATE()
    assert not (tmp_path / "elsewhere").exists()


# No room


def test_a_frame_far_larger_than_the_file_system_is_refused(nothing_left: None, shm: Path) -> None:
    n_bytes = 4 * os.statvfs(shm).f_blocks * os.statvfs(shm).f_frsize + (1 << 40)
    with pytest.raises(SharedMemoryFull, match=r"no room for segment 'cam'.*\n.*\n.*shm-size"):
        DataBlockProducer.create("cam", dtype="u1", shape=n_bytes, slots=1)
    with DataBlockProducer.create("cam", 4) as cam:
        cam.put(np.zeros(4, "u1"))


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    DataBlockProducer.create("cam", dtype="u1", shape=1 << 20, slots=2)
except pyhub.SharedMemoryFull as error:
    say("full", str(error).splitlines()[0])
with DataBlockProducer.create("cam", dtype="u1", shape=1000) as cam:
    cam.put(np.zeros(1000, "u1"))
    say("fits")
"""


def test_a_limit_on_the_size_of_files_is_no_room_either(start: Start, nothing_left: None) -> None:
    child = start(LIMITED)
    assert "no room for segment 'cam'" in child.expect("full")
    child.expect("fits")
    child.end()


SMALL = """
os.environ["PYHUB_SHM_DIR"] = sys.argv[1]
n_created, kept = 0, []
for number in range(300):
    try:
        kept.append(DataBlockProducer.create(f"cam{number}", dtype="u1", shape=20000, slots=2))
        kept[-1].put(np.full(20000, 1, "u1"))  # every page of it is there
        n_created += 1
    except pyhub.SharedMemoryFull:
        continue
    if number % 3 == 0:
        kept.pop(0).close()
full = os.statvfs(sys.argv[1])
try:
    while True:
        kept.append(DataBlockProducer.create(f"last{len(kept)}", dtype="u1", shape=4, slots=1))
except pyhub.SharedMemoryFull as error:
    say("full", str(error).splitlines()[0])
for cam in kept:
    cam.put(np.full(cam.shape, 2, "u1"))  # no bus error
    with DataBlockConsumer.attach(cam.name) as view:
        assert (view.read(0).data == 2).all()
    cam.close()
del kept, cam, view
left = [name for name in os.listdir(sys.argv[1]) if not name.endswith("..leases")]
free = os.statvfs(sys.argv[1]).f_bfree
say("left", left, free, n_created)
"""

UNSHARED = ("unshare", "--mount", "--map-root-user")
MOUNT = 'mount -t tmpfs -o size=1m,mode=0700 none "$1"'


def can_mount(directory: Path) -> bool:
    command = [*UNSHARED, "sh", "-c", MOUNT, "sh", str(directory)]
    return shutil.which("unshare") is not None and not subprocess.run(command).returncode


def test_a_full_shared_memory_is_an_error_and_never_a_bus_error(
    start: Start, tmp_path: Path
) -> None:
    """P6. A file system of 1 MB, filled to the last page, again and again."""
    if not can_mount(tmp_path):
        pytest.skip("this user may not mount a file system of its own")
    enter = (*UNSHARED, "sh", "-c", f'{MOUNT} && shift && exec "$@"', "sh", str(tmp_path))
    child = start(SMALL, tmp_path, prefix=enter)
    assert "No space left on device" in child.expect("full")
    left, n_free_pages, n_created = child.expect("left").rsplit(maxsplit=2)
    assert left == "[]"
    assert int(n_free_pages) >= 255, "but for the lock file it is empty again"
    assert int(n_created) > 10
    child.end()


def test_what_was_tried_in_vain_has_left_nothing(nothing_left: None) -> None:
    for options in ({"dtype": object}, {"slots": 0}, {"shape": 2**50}):
        with pytest.raises(PyhubError):
            DataBlockProducer.create("cam", **options)
    assert segment_names() == []
