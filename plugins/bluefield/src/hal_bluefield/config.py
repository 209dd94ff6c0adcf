"""How a card's own side is reached: its BMC by Redfish, its Arm cores by SSH. Nothing of it can be discovered.

The file is ``$HAL_BLUEFIELD_CONFIG``, else ``/etc/hal/bluefield.toml``::

    [card.MT2332XZ0ABC]                     # the serial number, as hal-probe shows it
    bmc = "https://192.168.240.1"
    bmc_user = "root"
    bmc_password_file = "/etc/hal/bmc.password"
    bmc_ca = "/etc/hal/bmc-ca.pem"          # what signs the BMC's certificate; it is always verified
    ssh = "hal@192.168.100.2"               # rshim's tmfifo_net0, or the card's management port
    ssh_key = "/etc/hal/card.key"
    ssh_known_hosts = "/etc/hal/known_hosts"
    service_image = "localhost/busybox"     # runs the commands of services that name no image
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping

import msgspec

from hal.errors import UsageError

DEFAULT_FILE = "/etc/hal/bluefield.toml"


class CardConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One card. ``root`` names the tree that the card is in, where it is not the running machine's: in any other tree
    a card of that serial number is a recording, and its BMC and cores are left alone. ``shell = "local"`` is for a
    driver that runs on the card's own cores. ``ports`` are the interfaces that flow rules apply to; by default the
    card's uplinks and representors.
    """

    root: str = ""
    bmc: str = ""
    bmc_user: str = "root"
    bmc_password_file: str = ""
    bmc_ca: str = ""
    shell: str = "ssh"
    ssh: str = ""
    ssh_port: int = 22
    ssh_key: str = ""
    ssh_known_hosts: str = ""
    sudo: bool = False
    service_image: str = ""
    ports: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    card: dict[str, CardConfig] = {}


def load_config(environ: Mapping[str, str]) -> dict[str, CardConfig]:
    """Return the cards' configurations by serial number; none if there is no file.

    Raises ``UsageError`` for a file that is named and not there, or that makes no sense.
    """
    named = environ.get("HAL_BLUEFIELD_CONFIG", "")
    path = named or DEFAULT_FILE
    try:
        with open(path, "rb") as file:
            found = msgspec.convert(tomllib.load(file), _File)
    except FileNotFoundError:
        if not named:
            return {}
        raise UsageError(f"{path} is not there", during="configure", hint="unset HAL_BLUEFIELD_CONFIG") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", during="configure", hint="chmod, or another file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: {error}", during="configure", hint="see the README of rackhal-bluefield") from None
    for serial, card in found.card.items():
        if card.shell not in ("ssh", "local"):
            raise UsageError(f"{path}: card {serial}: shell is {card.shell!r}", during="configure", hint="ssh or local")
        if card.bmc and not card.bmc.startswith("https://"):
            raise UsageError(
                f"{path}: card {serial}: the BMC's address is {card.bmc!r}", during="configure", hint="https://HOST"
            )
    return found.card


def belongs(card: CardConfig, root: str | None) -> bool:
    """True if a configuration speaks of a card found under ``root`` (None: the running machine)."""
    if root is None or root == "/":
        return not card.root
    return bool(card.root) and os.path.realpath(card.root) == os.path.realpath(root)
