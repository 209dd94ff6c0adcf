"""A folder in the form of UPMEM's SDK, for programs whose Makefiles call its tools by name."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from hal.errors import DriverError
from hal_mocks.upmem_sim.toolchain import HOST_HEADERS, libdpu

_COMPILER = """\
#!/bin/sh
exec '{python}' -m hal_mocks.upmem_sim "$@"
"""
_PKG_CONFIG = """\
#!/bin/sh
# As the SDK's: dpu-pkg-config --cflags --libs dpu
for word in "$@"; do
    case $word in
        --cflags) printf '%s ' '-I{home}/include/dpu' ;;
        --libs) printf '%s ' '-L{home}/lib' '-Wl,-rpath,{home}/lib' -ldpu ;;
        --variable=dpu_sdk_path|--variable=prefix) printf '%s' '{home}' ;;
    esac
done
echo
"""
_ENVIRONMENT = """\
export UPMEM_HOME='{home}'
export PATH='{home}/bin':"$PATH"
export LD_LIBRARY_PATH='{home}/lib'"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
"""


def make_sdk(folder: str | Path) -> Path:
    """Make such a folder and return its absolute path; sourcing its ``upmem_env.sh`` puts the tools on the path.

    Raises ``DriverError`` if the folder is there and is none of ours.
    """
    home = Path(folder).absolute()
    library = libdpu()
    if home.exists() and any(home.iterdir()) and not (home / "upmem_env.sh").exists():
        raise DriverError(f"{home} is there already", during="make an SDK", hint="name a folder that is not there")
    for part in ("bin", "lib", "include"):
        (home / part).mkdir(parents=True, exist_ok=True)
    shutil.copytree(HOST_HEADERS, home / "include" / "dpu", dirs_exist_ok=True)
    shutil.copy(library, home / "lib" / "libdpu.so")
    words = {"home": home, "python": sys.executable}
    for name, text in (("dpu-upmem-dpurte-clang", _COMPILER), ("dpu-pkg-config", _PKG_CONFIG)):
        script = home / "bin" / name
        script.write_text(text.format(**words))
        script.chmod(0o755)
    (home / "upmem_env.sh").write_text(_ENVIRONMENT.format(**words))
    return home
