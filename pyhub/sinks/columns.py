"""Parameters as data sets with one value a row, which grow with the recording."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from pyhub.sinks.chunks import make_dataset
from pyhub.sinks.values import Value, clean_text, component, to_json, typed

__all__ = ["Column", "Parameters", "Tree", "make_group", "set_link"]

_log = logging.getLogger("pyhub.sinks")

MAX_PARAMETERS = 4096
COLUMN_CHUNK_BYTES = 1 << 13
MAX_FILLED_ROWS = 1 << 12


class Tree:
    """The entry. What is made during the recording is linked once it is in the file.

    A group that nobody can reach yet takes links at once; so the parameters of
    the first frame appear together, with their group. A kill while a name that
    came later is linked may cost that group, never the frames.
    """

    def __init__(self, entry: Any) -> None:
        self.entry = entry
        self._groups = {"": entry}
        self._hidden: set[str] = set()
        self._links: list[tuple[Any, str, Any]] = []

    def attach(self, path: str, item: Any) -> None:
        """Let `item` appear as `path`, in place of what is there, after the next flush."""
        above, _, name = path.rpartition("/")
        group = self._group(above)
        if above in self._hidden:
            set_link(group, name, item)
        else:
            self._links.append((group, name, item))

    def link(self) -> bool:
        """Make the links that wait; return whether there were any."""
        links = self._links
        self._links, self._hidden = [], set()
        for link in links:
            set_link(*link)
        return bool(links)

    def adopt(self, path: str, group: Any) -> None:
        """Know `group`, which is there already, as `path`."""
        self._groups[path] = group

    def _group(self, path: str) -> Any:
        if path not in self._groups:
            made = make_group(self.entry, None, "NXcollection")
            self.attach(path, made)
            self._hidden.add(path)
            self._groups[path] = made
        return self._groups[path]


class Column:
    """A growing data set; values wait here, the data set is made and grows at a flush."""

    def __init__(self, h5py: Any, tree: Tree, path: str, like: Value, fill: Any = None) -> None:
        self.path = path
        self.attributes: dict[str, Any] = {}
        self.is_changed = True
        self._h5py, self._tree = h5py, tree
        self._dtype, self._shape = _roomy(like.dtype), like.shape
        self._own_fill = fill
        self._dataset: Any = None
        self._rows: list[int] = []
        self._values: list[Value] = []

    def put(self, row: int, value: Value) -> bool:
        """Take `value`, or return that it does not fit those before it."""
        if value.shape != self._shape:
            return False
        if value.dtype != self._dtype and not self._widen(value):
            return False
        self._rows.append(row)
        self._values.append(value)
        return True

    def write(self, n_rows: int) -> None:
        """Write what waits and let the data set have `n_rows` rows."""
        if self._dataset is None or self._dataset.dtype != self._dtype:
            self._renew()
        if self.is_changed:
            self._dataset.attrs.update(self.attributes)
            self.is_changed = False
        if self._dataset.shape[0] != n_rows:
            self._dataset.resize(n_rows, axis=0)
        for first, last in self._runs():
            start, stop = self._rows[first], self._rows[last] + 1
            block = np.full((stop - start, *self._shape), self._fill(), self._stored_dtype())
            for k in range(first, last + 1):
                block[self._rows[k] - start] = self._values[k]
            self._dataset[start:stop] = block
        self._rows.clear()
        self._values.clear()

    def _fill(self) -> Any:
        return fill_value(self._dtype) if self._own_fill is None else self._own_fill

    def _stored_dtype(self) -> Any:
        is_text = self._dtype.kind == "S"
        return self._h5py.string_dtype("utf-8", self._dtype.itemsize) if is_text else self._dtype

    def _widen(self, value: Value) -> bool:
        """Change to a type for both kinds of value, if none changes by it."""
        kinds = {value.dtype.kind, self._dtype.kind}
        if kinds == {"S"}:
            if value.dtype.itemsize > self._dtype.itemsize:
                self._dtype = _roomy(value.dtype)
            return True
        if not kinds <= set("iufc"):
            return False
        wide = np.result_type(value.dtype, self._dtype)
        if not _survives(value, wide):
            return False
        if wide != self._dtype:
            stored = np.empty(0) if self._dataset is None else self._dataset[()]
            stored = stored[stored != fill_value(stored.dtype)]
            if not all(_survives(old, wide) for old in (stored, *self._values)):
                return False
            self._dtype = wide
        return True

    def _renew(self) -> None:
        """Make the data set, with the values that one of a narrower type has."""
        old, fill = self._dataset, self._fill()
        row_bytes = self._dtype.itemsize * math.prod(self._shape)
        chunk = (max(1, COLUMN_CHUNK_BYTES // row_bytes), *self._shape)
        dtype = self._stored_dtype()
        kind = self._h5py.h5t.py_create(dtype, logical=True)
        # h5py 3.16 writes a pointer as the fill value of any text; HDF5's own is empty.
        missing = None if self._dtype.kind == "S" else np.array(fill, dtype)
        new = make_dataset(self._h5py, self._tree.entry, None, kind, chunk, missing)
        if self._dtype.kind in "iu":
            self.attributes["missing_value"] = fill
        else:
            self.attributes.pop("missing_value", None)
        if old is not None and len(old):
            new.resize(len(old), axis=0)
            values = old[()]
            lacks = values == fill_value(old.dtype)
            with np.errstate(invalid="ignore", over="ignore"):
                new[...] = np.where(lacks, fill, values.astype(self._dtype)).astype(dtype)
        self._dataset, self.is_changed = new, True
        self._tree.attach(self.path, new)

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Yield first and last index of rows that are near enough for one block."""
        rows, first = self._rows, 0
        for k in range(1, len(rows) + 1):
            if k == len(rows) or rows[k] - rows[k - 1] > MAX_FILLED_ROWS:
                yield first, k - 1
                first = k


class Parameters:
    """The columns of the parameters, made as names appear."""

    def __init__(self, h5py: Any, tree: Tree) -> None:
        self._h5py, self._tree = h5py, tree
        self._leaves: dict[str, _Leaf] = {}
        self._dataset_paths: set[str] = set()
        self._group_paths: set[str] = set()

    def put(self, row: int, leaves: dict[str, Any], units: dict[str, str]) -> None:
        """Note the parameters of the frame in `row`."""
        rest = {}
        for name, value in leaves.items():
            if value is None:
                continue
            leaf = self._leaves.get(name)
            if leaf is None:
                if len(self._leaves) >= MAX_PARAMETERS:
                    rest[name] = value
                    continue
                leaf = self._leaves[name] = _Leaf(self, name)
            leaf.put(row, value, units.get(name))
        if rest:  # names that change from frame to frame would make a data set each
            self._leaves.setdefault("others", _Leaf(self, "others")).put(row, rest, None)

    def columns(self) -> Iterator[Column]:
        """Return all columns, in the order in which they came."""
        for leaf in self._leaves.values():
            yield from leaf.columns

    def column(self, name: str, suffix: str, like: Value) -> Column:
        """Return a new column for the parameter `name`, where HDF5 allows it to be."""
        *above, last = [component(part) for part in name.split("/") if part] or ["_"]
        path = "parameters"
        for part in above:
            path = f"{path}/{part}"
            while path in self._dataset_paths:
                path += "_"
            self._group_paths.add(path)
        path = f"{path}/{last}{suffix}"
        while path in self._dataset_paths or path in self._group_paths:
            path += "_"
        self._dataset_paths.add(path)
        made = Column(self._h5py, self._tree, path, like)
        if path != f"parameters/{name}":
            made.attributes["pyhub_name"] = clean_text(name)
        return made


class _Leaf:
    """One parameter: a column of its type, and one of JSON for what has another."""

    def __init__(self, parameters: Parameters, name: str) -> None:
        self.columns: list[Column] = []
        self._parameters, self._name = parameters, name
        self._typed: Column | None = None
        self._json: Column | None = None
        self._units: str | None = None

    def put(self, row: int, value: Any, units: str | None) -> None:
        number = typed(value)
        if number is not None and self._typed is None and self._json is None:
            self._typed = self._add("", number)
        if number is None or self._typed is None or not self._typed.put(row, number):
            text = np.bytes_(to_json(value).encode())
            if self._json is None:
                self._json = self._add("_json" if self._typed else "", text)
                self._json.attributes["pyhub_encoding"] = "json"
            self._json.put(row, text)
        if units and units != self._units:
            self._note_units(row, units)

    def _add(self, suffix: str, like: Value) -> Column:
        made = self._parameters.column(self._name, suffix, like)
        self.columns.append(made)
        return made

    def _note_units(self, row: int, units: str) -> None:
        for column in self.columns:
            if self._units is None:
                column.attributes["units"] = units
            else:  # earlier values keep theirs
                column.attributes["units_changed"] = f"from row {row}: {units}"
            column.is_changed = True
        if self._units is not None:
            _log.warning("units of %s: %s, from row %d %s", self._name, self._units, row, units)
        self._units = units


def set_link(group: Any, name: str, item: Any) -> None:
    """Let `name` lead to `item`, in place of what is there."""
    if name in group:
        del group[name]
    group[name] = item


def make_group(parent: Any, name: str | None, nexus_class: str) -> Any:
    """Make a group of a NeXus class; without a name it is not linked yet."""
    group = parent.create_group(name)
    group.attrs["NX_class"] = nexus_class
    return group


def _roomy(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Leave a text room to grow; text of variable length would not survive a kill."""
    return np.dtype(f"S{1 << max(5, dtype.itemsize.bit_length())}") if dtype.kind == "S" else dtype


def fill_value(dtype: np.dtype[Any]) -> Any:
    """Return what stands where a frame lacks the parameter."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return limits.min if dtype.kind == "i" else limits.max
    return {"f": np.nan, "c": complex(np.nan, np.nan), "b": False}.get(dtype.kind, b"")


def _survives(numbers: Value, wide: np.dtype[Any]) -> bool:
    """Whether integers stay what they are as floats of type `wide`."""
    if numbers.dtype.kind not in "iu" or wide.kind not in "fc":
        return True
    limit = 1 << (np.finfo(wide).nmant + 1)
    values = np.asarray(numbers)
    return bool(np.all((values <= limit) & (values >= -limit)))
