"""What FrameFile makes of the HDF5 files that laboratories have."""

from __future__ import annotations

import builtins
import logging
import os
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pyhub.errors import AccessDenied, ChannelClosed, CodecError, LayoutError, MissingExtra
from pyhub.sources.hdf5 import FrameFile

ROOT = Path(__file__).parents[2]
REAL_FILES = [
    path for path in [ROOT.parent / "shared" / "data" / "nexus-example.hdf5"] if path.exists()
]

RECORD = np.dtype([("x", "<f4"), ("n", ">i8", (3,)), ("ok", "?"), ("tag", "S3"), ("z", "<c16")])
PADDED = np.dtype([("a", "u1"), ("b", "<f8")], align=True)
STORABLE = [
    "?", "i1", "u1", "<i2", ">u2", "<i4", ">i4", "<u8", "<i8", "<f2", ">f4", "<f8", "<c8",
    ">c16", "S5", "V7", RECORD, PADDED,
]  # fmt: skip
OPAQUE = ["<U4", "<M8[ns]", "<m8[s]"]


def some(dtype: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return values of any dtype, every one a valid one."""
    dtype = np.dtype(dtype)
    n = int(np.prod(shape))
    if dtype.names is not None:
        out = np.zeros(shape, dtype)
        for name in dtype.names:
            field = dtype[name]
            out[name] = some(field.base, (*shape, *field.shape))
        return out
    if dtype.kind in "SU":
        texts = [
            str(k * 7919)[: dtype.itemsize // (4 if dtype.kind == "U" else 1)] for k in range(n)
        ]
        return np.array(texts, dtype).reshape(shape)
    if dtype.kind == "V":
        raw = np.arange(n * dtype.itemsize, dtype=np.uint8)
        return np.frombuffer(raw.tobytes(), dtype).reshape(shape)
    numbers = np.arange(n).reshape(shape) % 100
    if dtype.kind == "c":
        return (numbers + 1j * numbers[::-1]).astype(dtype)
    return numbers.astype(dtype)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "frames.h5"


def nexus_file(path: Path) -> h5py.File:
    """Make a small file as beamlines write them; return it open."""
    file = h5py.File(path, "w")
    file.attrs["default"] = "entry"
    entry = file.create_group("entry")
    entry.attrs.update(NX_class="NXentry", default="data")
    entry["title"] = "a title"
    data = entry.create_group("data")
    data.attrs.update(NX_class="NXdata", signal="frames")
    data["frames"] = np.arange(4 * 3 * 5, dtype="i4").reshape(4, 3, 5)
    data["blank"] = np.zeros((3, 5), "i4")
    mono = entry.create_group("instrument/mono")
    mono["energy"] = np.array([12.5])
    mono["energy"].attrs["units"] = "keV"
    entry["instrument/current"] = np.array([1.0, 2.0, 3.0, 4.0])
    entry["instrument/current"].attrs["units"] = np.bytes_(b"mA")
    return file


# --- Frames ---


@pytest.mark.parametrize("dtype", STORABLE, ids=str)
def test_every_fixed_size_type_is_read_bit_for_bit(path: Path, dtype: Any) -> None:
    frames = some(dtype, (3, 4, 5))
    with h5py.File(path, "w") as file:
        file.create_dataset("frames", data=frames, chunks=(2, 3, 3))
    with FrameFile(path) as source:
        assert source.dtype == np.dtype(dtype)
        for i in range(3):
            assert source.read(i).tobytes() == frames[i].tobytes()


@pytest.mark.parametrize("dtype", OPAQUE)
def test_types_that_only_numpy_has_are_read_from_tagged_bytes(path: Path, dtype: str) -> None:
    frames = some(dtype, (3, 4, 5))
    with h5py.File(path, "w") as file:
        file.create_dataset("frames", data=frames.astype(h5py.opaque_dtype(frames.dtype)))
    with FrameFile(path) as source:
        assert source.dtype == np.dtype(dtype)
        assert (source.read(2) == frames[2]).all()


@pytest.mark.parametrize(
    ("shape", "interpretation", "n_frames", "frame_shape"),
    [
        ((6, 4, 5), None, 6, (4, 5)),
        ((6, 4, 5, 3), None, 6, (4, 5, 3)),
        ((4, 5), None, 1, (4, 5)),
        ((7,), None, 1, (7,)),
        ((), None, 1, ()),
        ((1, 4, 5), None, 1, (4, 5)),
        ((6, 7), "spectrum", 6, (7,)),
        ((6,), "scalar", 6, ()),
        ((4, 5, 3), "rgb-image", 1, (4, 5, 3)),
        ((6, 4, 5, 3), "rgb-image", 6, (4, 5, 3)),
        ((2, 6, 4, 5), "image", 2, (6, 4, 5)),
    ],
)
def test_dimensions_and_interpretation_say_which_axis_counts_the_frames(
    path: Path,
    shape: tuple[int, ...],
    interpretation: str | None,
    n_frames: int,
    frame_shape: tuple[int, ...],
) -> None:
    values = some("u2", shape)
    with h5py.File(path, "w") as file:
        file["frames"] = values
        if interpretation:
            file["frames"].attrs["interpretation"] = interpretation
    with FrameFile(path, "frames") as source:
        assert (source.n_frames, source.frame_shape) == (n_frames, frame_shape)
        read = np.stack([source.read(i) for i in range(n_frames)])
    assert (read == values.reshape(read.shape)).all()


def test_frame_ndim_overrides_the_rule(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["picture"] = some("u1", (4, 5, 3))
    with FrameFile(path, frame_ndim=3) as source:
        assert (source.n_frames, source.frame_shape) == (1, (4, 5, 3))
    with pytest.raises(LayoutError, match="frame_ndim can be 3 or one less"):
        FrameFile(path, frame_ndim=4)


def test_an_array_type_adds_its_dimensions_to_the_frame(path: Path) -> None:
    values = some("<f4", (3, 4, 5, 2))
    with h5py.File(path, "w") as file:
        data = file.create_dataset("frames", (3, 4, 5), np.dtype(("<f4", (2,))))
        data[...] = values
    with FrameFile(path) as source:
        assert (source.frame_shape, source.dtype) == ((4, 5, 2), np.dtype("<f4"))
        assert (source.read(1) == values[1]).all()


def test_an_enum_is_read_as_the_integers_that_it_is(path: Path) -> None:
    with h5py.File(path, "w") as file:
        kind = h5py.enum_dtype({"off": 0, "on": 1}, basetype="u1")
        file.create_dataset("frames", data=np.ones((2, 3, 3), "u1"), dtype=kind)
    with FrameFile(path) as source:
        assert source.dtype.metadata is None
        assert (source.read(1) == 1).all()


def test_chunks_across_many_frames_are_read_right(path: Path) -> None:
    frames = some("u2", (20, 30, 40))
    with h5py.File(path, "w") as file:
        file.create_dataset("frames", data=frames, chunks=(8, 7, 11), compression="gzip")
    with FrameFile(path) as source:
        assert all((source.read(i) == frames[i]).all() for i in range(20))


def test_read_into_fills_the_array_that_it_is_given(path: Path) -> None:
    nexus_file(path).close()
    out = np.zeros((2, 3, 5), "i4")
    with FrameFile(path) as source:
        source.read_into(2, out[1])
    assert (out[1] == np.arange(30, 45).reshape(3, 5)).all()
    assert not out[0].any()


@pytest.mark.parametrize(
    "out",
    [np.zeros((3, 5), "i8"), np.zeros((3, 4), "i4"), np.zeros((3, 10), "i4")[:, ::2],
     np.broadcast_to(np.zeros((), "i4"), (3, 5))],
    ids=["dtype", "shape", "strided", "read-only"],
)  # fmt: skip
def test_an_array_that_does_not_fit_is_refused(path: Path, out: np.ndarray[Any, Any]) -> None:
    nexus_file(path).close()
    with FrameFile(path) as source, pytest.raises(LayoutError, match=r"numpy\.empty"):
        source.read_into(0, out)


@pytest.mark.parametrize("i", [-1, 4])
def test_a_frame_that_is_not_there_is_an_index_error(path: Path, i: int) -> None:
    nexus_file(path).close()
    with FrameFile(path) as source:
        with pytest.raises(IndexError, match="frames 0 to 3, not"):
            source.read(i)
        with pytest.raises(IndexError, match="frames 0 to 3, not"):
            source.parameters(i)


def test_a_closed_file_says_so(path: Path) -> None:
    nexus_file(path).close()
    source = FrameFile(path)
    source.close()
    assert source.closed
    with pytest.raises(ChannelClosed, match="Open it again"):
        source.read(0)


# --- Finding the data set ---


def test_the_nexus_default_is_found(path: Path) -> None:
    nexus_file(path).close()
    with FrameFile(path) as source:
        assert source.dataset == "/entry/data/frames"
        assert "4 x (3, 5) int32" in repr(source)


def test_the_only_signal_is_found_without_defaults(path: Path) -> None:
    with nexus_file(path) as file:
        del file.attrs["default"]
    with FrameFile(path) as source:
        assert source.dataset == "/entry/data/frames"


def test_the_old_signal_attribute_is_found(path: Path) -> None:
    with nexus_file(path) as file:
        del file.attrs["default"]
        del file["entry/data"].attrs["signal"]
        file["entry/data/frames"].attrs["signal"] = 1
    with FrameFile(path) as source:
        assert source.dataset == "/entry/data/frames"


def test_the_only_image_of_a_plain_file_is_found(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["a/b/frames"] = np.zeros((2, 3, 3))
        file["a/b/alias"] = h5py.SoftLink("/a/b/frames")
        file["positions"] = np.zeros(9)
        file["nothing"] = np.zeros((0, 3, 3))
    with FrameFile(path) as source:
        assert source.dataset in ("/a/b/frames", "/a/b/alias")


def test_an_ambiguous_file_lists_its_candidates(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["one"] = np.zeros((2, 3, 3), "u2")
        file["two"] = np.zeros((4, 4), "f4")
    with pytest.raises(CodecError, match="which of its data sets") as caught:
        FrameFile(path)
    assert "/one (2, 3, 3) uint16; /two (4, 4) float32" in str(caught.value)
    assert "--dataset" in str(caught.value)


def test_external_frames_are_listed_and_read_when_named(path: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data_1.h5", "w") as file:
        file["images"] = some("u4", (3, 4, 4))
    with h5py.File(path, "w") as file:
        file.create_group("entry").attrs["NX_class"] = "NXentry"
        file["entry/data_1"] = h5py.ExternalLink("data_1.h5", "/images")
        file["entry/energy"] = 9.0
    with pytest.raises(CodecError, match=r"external link to data_1.h5:/images"):
        FrameFile(path)
    with FrameFile(path, "/entry/data_1") as source:
        assert (source.read(2) == some("u4", (3, 4, 4))[2]).all()
        assert source.constants == {"energy": 9.0}


# --- Parameters ---


def test_parameters_are_named_by_their_path_in_the_entry(path: Path) -> None:
    nexus_file(path).close()
    with FrameFile(path) as source:
        assert source.constants == {"instrument/mono/energy": 12.5, "title": "a title"}
        assert list(source.per_frame) == ["instrument/current"]
        assert source.units == {"instrument/current": "mA", "instrument/mono/energy": "keV"}
        assert source.parameters(2) == {
            "instrument/current": 3.0,
            "instrument/mono/energy": 12.5,
            "title": "a title",
        }


def test_other_entries_do_not_mix_in(path: Path) -> None:
    with nexus_file(path) as file:
        file["entry2/energy"] = 7.0
    with FrameFile(path) as source:
        assert "energy" not in source.constants


def test_without_an_nxentry_the_topmost_group_is_the_entry(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["scan1/images/frames"] = np.zeros((2, 3, 3))
        file["scan1/energy"] = 7.0
        file["scan2/energy"] = 8.0
    with FrameFile(path) as source:
        assert source.constants == {"energy": 7.0}


def test_a_data_set_at_the_root_takes_the_whole_file_as_entry(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["frames"] = np.zeros((2, 3, 3))
        file["a/energy"] = 7.0
    with FrameFile(path) as source:
        assert source.constants == {"a/energy": 7.0}


@pytest.mark.parametrize(
    ("stored", "value"),
    [
        (np.float64(1.5), 1.5),
        (np.array([[2]], "i8"), 2),
        (np.array([True]), True),
        (np.array(3, ">f4"), np.float32(3)),
        (np.array([4], "u2"), np.uint16(4)),
        ("größe", "größe"),
        (np.bytes_(b"plain"), "plain"),
        (np.array([b"25 \xb0C"]), "25 °C"),
        (np.complex128(1 + 2j), np.complex128(1 + 2j)),
    ],
    ids=repr,
)
def test_constants_keep_value_and_type(path: Path, stored: Any, value: Any) -> None:
    with nexus_file(path) as file:
        file["entry/x"] = stored
    with FrameFile(path) as source:
        got = source.constants["x"]
    assert got == value
    assert type(got) is type(value)


def test_texts_per_frame_are_text(path: Path) -> None:
    with nexus_file(path) as file:
        file["entry/fixed"] = np.array([b"a", b"bb", b"", b"d"])
        file["entry/variable"] = np.array(["ä", "b", "c", ""], h5py.string_dtype())
    with FrameFile(path) as source:
        assert source.parameters(1)["fixed"] == "bb"
        assert source.parameters(0)["variable"] == "ä"
        assert type(source.parameters(1)["fixed"]) is str


def test_big_endian_columns_become_native(path: Path) -> None:
    with nexus_file(path) as file:
        file["entry/x"] = np.array([1, 2, 3, 4], ">f4")
    with FrameFile(path) as source:
        assert source.per_frame["x"].dtype.isnative
        assert source.parameters(3)["x"] == 4


def test_an_object_with_many_links_counts_once_under_its_target(path: Path) -> None:
    with nexus_file(path) as file:
        file["entry/data/current"] = file["entry/instrument/current"]
        file["entry/aaa"] = h5py.SoftLink("/entry/instrument/mono/energy")
        file["entry/instrument/current"].attrs["target"] = "/entry/data/current"
        file["entry/loop"] = h5py.SoftLink("/entry")
        file["entry/also"] = file["entry/data"]
    with FrameFile(path) as source:
        assert sorted(source.parameters(0)) == ["aaa", "data/current", "title"]


def test_a_target_that_leads_elsewhere_is_not_believed(path: Path) -> None:
    with nexus_file(path) as file:
        file["entry/instrument/current"].attrs["target"] = "/entry/title"
        file["entry/instrument/mono/energy"].attrs["target"] = "/entry/gone"
    with FrameFile(path) as source:
        assert {"instrument/current", "instrument/mono/energy"} <= set(source.parameters(0))


def test_broken_and_external_links_are_skipped_with_a_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with nexus_file(path) as file:
        file["entry/broken"] = h5py.SoftLink("/nowhere")
        file["entry/other"] = h5py.ExternalLink("absent.h5", "/x")
    with caplog.at_level(logging.WARNING, "pyhub.sources"), FrameFile(path) as source:
        assert source.skipped["broken"] == "broken link to /nowhere"
        assert source.skipped["other"] == "external link to absent.h5:/x"
    assert "broken link to /nowhere" in caplog.text
    assert "external link to absent.h5:/x" in caplog.text


@pytest.mark.parametrize("text", ["x" * 2000, np.bytes_(b"x" * 2000)], ids=["variable", "fixed"])
def test_a_huge_text_is_skipped_and_listed(path: Path, text: Any) -> None:
    with nexus_file(path) as file:
        file["entry/log"] = text
    with FrameFile(path) as source:
        assert "log" not in source.constants
        assert source.skipped["log"] == "text of 2000 bytes, more than 1024"


def test_what_is_no_parameter_is_listed(path: Path) -> None:
    with nexus_file(path) as file:
        file["entry/axis"] = np.arange(7)
        file["entry/record"] = np.zeros((), RECORD)
        file["entry/empty"] = h5py.Empty("f4")
    with FrameFile(path) as source:
        assert source.skipped["axis"].startswith("shape (7,)")
        assert "neither a number nor text" in source.skipped["record"]
        assert "empty" in source.skipped
        assert "data/blank" in source.skipped


# --- Errors ---


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing.h5") as caught:
        FrameFile(tmp_path / "nothing.h5")
    assert "Check the path" in str(caught.value)


def test_a_file_that_is_not_hdf5_is_refused(path: Path) -> None:
    path.write_text("t, x\n1, 2\n")
    with pytest.raises(CodecError, match="is no HDF5 file"):
        FrameFile(path)


def test_a_truncated_file_is_refused(path: Path) -> None:
    nexus_file(path).close()
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(CodecError, match=r"damaged.*truncated"):
        FrameFile(path)


def test_a_file_that_may_not_be_read_says_whom_to_ask(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", refuse)  # root, who may run the tests, reads anything
    with pytest.raises(AccessDenied, match="chmod"):
        FrameFile(path)


def test_a_file_that_is_being_written_is_refused(path: Path) -> None:
    with nexus_file(path) as file:
        file.flush()
        script = f"from pyhub.sources.hdf5 import FrameFile; FrameFile({str(path)!r})"
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", script],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 2, str(path) + ".log", os.O_WRONLY | os.O_CREAT, 0o600)
            ],
        )
        os.waitpid(pid, 0)
    assert "another program is writing it" in Path(str(path) + ".log").read_text()


def test_a_missing_data_set_lists_those_that_are_there(path: Path) -> None:
    nexus_file(path).close()
    with pytest.raises(CodecError, match="no data set '/entry/data/fames'") as caught:
        FrameFile(path, "entry/data/fames")
    assert "/entry/data/frames (4, 3, 5) int32" in str(caught.value)


def test_a_group_is_no_data_set(path: Path) -> None:
    nexus_file(path).close()
    with pytest.raises(LayoutError, match="is no data set") as caught:
        FrameFile(path, "/entry/data")
    assert "/entry/data/frames (4, 3, 5) int32" in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "named"),
    [
        (h5py.string_dtype(), "variable-length"),
        (h5py.vlen_dtype("f4"), "variable-length"),
        (h5py.ref_dtype, "reference"),
        (np.dtype([("x", "f4"), ("y", [("names", h5py.string_dtype())])]), "field 'y.names'"),
    ],
    ids=["text", "vlen", "reference", "record"],
)
def test_values_of_no_fixed_size_are_refused_by_name(path: Path, dtype: Any, named: str) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("frames", (2, 3, 3), dtype)
    with pytest.raises(LayoutError, match="no fixed size") as caught:
        FrameFile(path, "frames")
    assert named in str(caught.value)


@pytest.mark.parametrize("what", [np.zeros((0, 3, 3)), h5py.Empty("f4")], ids=["zero", "null"])
def test_an_empty_data_set_is_refused(path: Path, what: Any) -> None:
    with h5py.File(path, "w") as file:
        file["frames"] = what
    with pytest.raises(CodecError, match=r"nothing is in it|has no values"):
        FrameFile(path, "frames")


def test_a_damaged_chunk_is_an_error_and_the_others_are_read(path: Path) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("frames", (2, 3, 3), "u2", chunks=(1, 3, 3), compression=1)
        data[0] = 1
        data.id.write_direct_chunk((1, 0, 0), b"this is no zlib stream")
    with FrameFile(path) as source:
        assert (source.read(0) == 1).all()
        with pytest.raises(CodecError, match=r"frame 1 of '/frames'.*cannot be read"):
            source.read(1)


def test_an_unknown_filter_names_the_package_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("frames", data=np.zeros((2, 3, 3)), compression="gzip")
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: False)
    with pytest.raises(MissingExtra, match=r"(?s)filter 1 .*pip install hdf5plugin"):
        FrameFile(path)


def test_without_h5py_the_extra_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "h5py":
            raise ModuleNotFoundError("No module named 'h5py'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"pip install pyhub\[hdf5\], or conda install h5py"):
        FrameFile(path)


# --- Real files ---


@pytest.mark.parametrize("real", [None, *REAL_FILES], ids=lambda real: real and real.name)
def test_an_areadetector_file_is_read_with_its_parameters(real: Path | None, path: Path) -> None:
    file = real or like_the_real_one(path)
    with h5py.File(file) as plain:
        frames = plain["/entry/data/frames"][()]
        times = plain["/entry/data/sample_times"][()]
    with FrameFile(file) as source:
        assert source.dataset == "/entry/data/frames"
        assert (source.n_frames, source.frame_shape) == (10, frames.shape[1:])
        assert all((source.read(i) == frames[i]).all() for i in range(10))
        # `target` of /entry/data/sample_times
        assert (source.per_frame["instrument/sample/image_times"] == times).all()
        assert source.parameters(0)["instrument/source/energy"] == 7.0
        assert source.units["instrument/source/energy"] == "GeV"
        assert source.units["instrument/control/integral"] == "clock"
        assert {"data/horizontal", "data/vertical"} <= set(source.skipped)


def like_the_real_one(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        data = entry.create_group("data")
        data.attrs.update(NX_class="NXdata", signal="frames")
        frames = some("i4", (10, 19, 48))
        data.create_dataset("frames", data=frames, chunks=(2, 5, 12), compression="gzip")
        data["horizontal"], data["vertical"] = np.arange(48), np.arange(19)
        data["sample_times"] = np.arange(10)
        data["sample_times"].attrs["target"] = "/entry/instrument/sample/image_times"
        instrument = entry.create_group("instrument")
        instrument["sample/image_times"] = data["sample_times"]
        instrument["detector/data"] = data["frames"]
        instrument["control/integral"] = np.arange(10.0)
        instrument["control/integral"].attrs["units"] = "clock"
        instrument["source/energy"] = np.array([7.0])
        instrument["source/energy"].attrs["units"] = "GeV"
    return path
