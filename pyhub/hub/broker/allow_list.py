"""Who may connect: the broker's own user, and a site's clients as their file has them now."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from pyhub.errors import PyhubError
from pyhub.hub.broker.rights import Client
from pyhub.hub.broker.site import LOCAL_NAME, Site, read_site

__all__ = ["AllowList"]

_log = logging.getLogger("pyhub.hub")


class AllowList:
    """Who may connect: the broker's own user and a site's clients. Contains public keys.

    Parameters
    ----------
    own
        Public key of the broker's own user, in Z85; it is an admin.
    path
        The site's configuration file, if it has one.

    Attributes
    ----------
    problem
        Why the file as it is now is not in force; empty: it is.
    n_problems
        How many changes of the file could not be taken.

    Raises
    ------
    ConfigError, AccessDenied, MissingExtra, OSError
        The file cannot be used.
    """

    def __init__(self, own: str, path: Path | None) -> None:
        self._own = {own.encode(): Client(LOCAL_NAME, "admin", {}, own, is_own=True)}
        self._path = path
        self._clients: Mapping[bytes, Client] = self._own
        self.problem = ""
        self.n_problems = 0
        if path is not None:
            self._seen, self._is_settled = _signature(path), False
            site = read_site(path)
            self._in_force = self._wanted = _for_a_restart(site)
            self._clients = self._with_own(site)

    def __contains__(self, public_key: object) -> bool:
        return public_key in self._clients

    def client_of(self, public_key: bytes) -> Client | None:
        """Return who holds that key (Z85) by the rules in force; None: nobody."""
        return self._clients.get(public_key)

    def refresh(self) -> bool:
        """Read the file again if it changed, and return whether other rules are in force.

        Only `clients` is taken. With a file that cannot be used, the former
        rules stay in force, and `problem` says why.
        """
        if self._path is None:
            return False
        seen = _signature(self._path)
        is_same = seen == self._seen
        if is_same and self._is_settled:
            return False
        # What changed is read at two looks: two changes within one tick of the
        # file system's clock look alike, and the second one may revoke a key.
        self._seen, self._is_settled = seen, is_same
        try:
            site = read_site(self._path)
        except (PyhubError, OSError) as error:
            if not is_same or str(error) != self.problem:
                self.n_problems += 1
                _log.error("the former rules stay in force: %s", error)
            self.problem = str(error)
            return False
        self.problem = ""
        self._tell_of_restart(site)
        clients = self._with_own(site)
        if clients == self._clients:
            return False
        self._clients = clients
        _log.info("%s: %d clients may connect", self._path, len(site.clients))
        return True

    def _with_own(self, site: Site) -> Mapping[bytes, Client]:
        for key in self._own.keys() & site.clients.keys():
            name = site.clients[key].name
            _log.warning("%s: %r is the broker's own user, who is an admin", site.path, name)
        return {**site.clients, **self._own}

    def _tell_of_restart(self, site: Site) -> None:
        wanted = _for_a_restart(site)
        if wanted != self._wanted and wanted != self._in_force:
            _log.warning("%s: all but `clients` takes a restart of the broker", self._path)
        self._wanted = wanted


def _for_a_restart(site: Site) -> tuple[object, ...]:
    return site.runtime_dir, site.listen, site.key_file


def _signature(path: Path) -> object:
    """Return what differs when a file was written, replaced, or given another mode or owner."""
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
