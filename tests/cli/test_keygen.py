"""pyhub keygen: two files, the lines for the configuration, and the secret in one place."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import zmq

from pyhub.hub.broker.rights import Client
from pyhub.hub.broker.site import read_site


def test_its_lines_let_the_client_in(cli: Any, tmp_path: Path) -> None:
    made = cli("keygen", "alignment-gui", "--directory", tmp_path)
    assert made.code == 0
    config = tmp_path / "broker.yaml"
    config.write_text("clients:\n" + made.out)
    config.chmod(0o644)
    public = (tmp_path / "alignment-gui.pub").read_text().strip()
    assert read_site(config).clients == {
        public.encode(): Client("alignment-gui", "viewer", {}, public)
    }


def test_the_secret_is_in_one_file_of_its_owners_and_shown_nowhere(
    cli: Any, tmp_path: Path
) -> None:
    made = cli("keygen", "gui", cwd=tmp_path)
    keys = json.loads((tmp_path / "gui.key").read_bytes())
    assert zmq.curve_public(keys["secret"].encode()).decode() == keys["public"]
    assert (tmp_path / "gui.pub").read_text() == keys["public"] + "\n"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"gui.key": 0o600, "gui.pub": 0o644}
    assert keys["public"] in made.out
    assert keys["secret"] not in made.out + made.err
    assert f"{tmp_path}/gui.key is secret" in made.err


def test_the_brokers_own_pair_goes_elsewhere(cli: Any, tmp_path: Path) -> None:
    made = cli("keygen", "broker", "--directory", tmp_path)
    config = tmp_path / "broker.yaml"
    config.write_text(made.out)
    config.chmod(0o644)
    assert read_site(config).key_file == tmp_path / "broker.key"
    public = (tmp_path / "broker.pub").read_text().strip()
    assert f'server_key="{public}"' in made.out


@pytest.mark.parametrize("kind", ["key", "pub"])
def test_keys_that_are_there_are_kept(cli: Any, tmp_path: Path, kind: str) -> None:
    there = tmp_path / f"gui.{kind}"
    there.write_text("in use")
    refused = cli("keygen", "gui", "--directory", tmp_path)
    assert refused.code == 1
    assert f"FileExistsError: {there} exists; keys that are in use are not replaced" in refused.err
    assert there.read_text() == "in use"
    assert list(tmp_path.iterdir()) == [there]


def test_a_name_that_leads_elsewhere_is_wrong_usage(cli: Any, tmp_path: Path) -> None:
    for name in ("../gui", "a/b", "", ".gui"):
        assert cli("keygen", name, cwd=tmp_path).code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_not_found(cli: Any, tmp_path: Path) -> None:
    missing = cli("keygen", "gui", "--directory", tmp_path / "none")
    assert missing.code == 3
    assert f"{tmp_path}/none" in missing.err
