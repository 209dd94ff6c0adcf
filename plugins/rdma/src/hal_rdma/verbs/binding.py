"""Loading pyverbs, the Python face of libibverbs: from where Python finds it, or from where Debian puts it.

A virtual environment does not see Debian's packages, and PyPI's pyverbs is a source tree that builds all of rdma-core.
So where ``import pyverbs`` finds nothing, the one of ``/usr/lib/python3/dist-packages`` is loaded by its path; it is
compiled for one minor version of Python and of no use to another.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

from hal.errors import NotReady

DEBIAN = Path("/usr/lib/python3/dist-packages/pyverbs")
_PACKAGES = "apt install python3-pyverbs ibverbs-providers"
_MODULES = ("addr", "cq", "device", "enums", "mr", "pd", "pyverbs_error", "qp", "wr")
_log = logging.getLogger(__name__)


class Verbs:
    """The modules of pyverbs that are used, and where they were found. They have no types, so nor has this."""

    def __init__(self, modules: dict[str, Any], origin: str) -> None:
        self.origin = origin
        self.enums = modules["enums"]
        self.Context = modules["device"].Context
        self.PD = modules["pd"].PD
        self.MR = modules["mr"].MR
        self.CQ = modules["cq"].CQ
        self.CompChannel = modules["cq"].CompChannel
        self.QP = modules["qp"].QP
        self.QPAttr = modules["qp"].QPAttr
        self.QPCap = modules["qp"].QPCap
        self.QPInitAttr = modules["qp"].QPInitAttr
        self.AHAttr = modules["addr"].AHAttr
        self.GID = modules["addr"].GID
        self.GlobalRoute = modules["addr"].GlobalRoute
        self.SGE = modules["wr"].SGE
        self.SendWR = modules["wr"].SendWR
        self.RecvWR = modules["wr"].RecvWR
        self.Error: type[Exception] = modules["pyverbs_error"].PyverbsError


_loaded: Verbs | None = None


def why_no_binding(folder: Path = DEBIAN) -> str:
    """Return why pyverbs cannot be loaded, or an empty text; loads nothing."""
    if "pyverbs" in sys.modules or importlib.util.find_spec("pyverbs") is not None:
        return ""
    if not (folder / "__init__.py").is_file():
        return f"pyverbs is not installed (try: {_PACKAGES})"
    built = sorted(path.name for path in folder.glob("device.*.so"))
    tag = f"cpython-{sys.version_info.major}{sys.version_info.minor}-"
    if not any(tag in name for name in built):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"{folder} is not built for Python {version} (try: /usr/bin/python3 -m venv)"
    return ""


def load_verbs(folder: Path = DEBIAN) -> Verbs:
    """Return pyverbs, loaded once. Raises ``NotReady`` with the package to install."""
    global _loaded
    if _loaded is None:
        why = why_no_binding(folder)
        if why:
            raise NotReady(why, during="open", hint=_PACKAGES)
        origin = "import"
        if "pyverbs" not in sys.modules and importlib.util.find_spec("pyverbs") is None:
            origin = str(folder)
            _load_package(folder)
            _log.info("pyverbs is not on the path; it was loaded from %s", folder)
        try:
            modules: dict[str, Any] = {name: importlib.import_module(f"pyverbs.{name}") for name in _MODULES}
        except ImportError as error:
            raise NotReady(f"pyverbs cannot be loaded: {error}", during="open", hint=_PACKAGES) from error
        verbs = Verbs(modules, origin)
        # The first listing loads the vendors' libraries: now, and not on the time of the first device that is opened.
        with contextlib.suppress(verbs.Error):  # which it also raises where there is no device
            modules["device"].get_device_list()
        _loaded = verbs
    return _loaded


def _load_package(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        "pyverbs", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["pyverbs"] = package
    spec.loader.exec_module(package)
