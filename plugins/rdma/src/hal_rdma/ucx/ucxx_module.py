"""ucxx, for whoever wants its asyncio API: the same UCX, told the transports of a software NIC.

ucxx sends and receives messages and streams between asyncio programs; it has neither put nor get nor atomics in Python
(see ``docs/decisions/0008-ucx-py-has-ended.md``), and knows nothing of leases. So it stands beside this plugin's data
plane, not under it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hal.errors import NotReady
from hal_rdma.software import transports_of
from hal_rdma.ucx.library import SYSTEM, choose_library

if TYPE_CHECKING:
    from hal.model.device import Device

_PREFER_SYSTEM = "RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY"
"""What ucxx's own loader reads."""


def load_ucxx(device: Device, environ: Mapping[str, str]) -> Any:
    """Return the module ``ucxx``, initialised for a device's transports, once a process.

    ucxx listens on TCP to bring endpoints together, so ``tcp`` is added. Raises ``NotReady`` where it is not installed.
    """
    software = transports_of(device)
    if choose_library(environ, software=bool(software)) == SYSTEM:
        os.environ.setdefault(_PREFER_SYSTEM, "true")
    try:
        import ucxx
    except ImportError as error:
        raise NotReady(
            f"ucxx cannot be imported: {error}",
            device=device.id,
            during="open",
            hint="pip install rackhal-rdma[ucxx], about 330 MB",
        ) from error
    if software:
        ucxx.init(options={"TLS": ",".join(dict.fromkeys((*software, "tcp", "self")))})
    else:
        ucxx.init()
    return ucxx
