"""As much of tc as the plugin uses: filters are remembered, one preference is one protocol's."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(state: Path, *options: str) -> int:
    assert options[-2:] == ("-batch", "-"), options
    worst = 0
    for number, line in enumerate(sys.stdin, 1):
        code = one(state, line.split())
        worst = worst or code
        if code:
            print(f"Command failed -:{number}", file=sys.stderr)
            if "-force" not in options:
                break
    return worst


def one(state: Path, words: list[str]) -> int:
    state.mkdir(parents=True, exist_ok=True)
    dev = words[words.index("dev") + 1]
    if dev not in ("p0", "p1", "pf0hpf"):
        print(f'Cannot find device "{dev}"', file=sys.stderr)
        return 1
    path = state / f"{dev}.json"
    filters = json.loads(path.read_text()) if path.exists() else []
    if words[0] == "qdisc":
        (state / f"{dev}.clsact").touch()
        return 0
    if words[1] == "show":
        print(json.dumps(filters))
        return 0
    pref, protocol = int(words[words.index("pref") + 1]), words[words.index("protocol") + 1]
    if words[1] == "add":
        if not (state / f"{dev}.clsact").exists():
            print("Error: Parent Qdisc doesn't exists.", file=sys.stderr)
            return 2
        if any(each["pref"] == pref for each in filters):
            print("RTNETLINK answers: File exists", file=sys.stderr)
            return 2
        if "vlan_ethtype" in words and protocol != "802.1Q":
            print('Illegal "vlan_ethtype"', file=sys.stderr)
            return 1
        stats = {"packets": 0, "bytes": 0}
        keys = words[words.index("flower") + 1 :]
        options = {"handle": 1, "keys": keys, "actions": [{"order": 1, "stats": stats}]}
        filters.append({"protocol": protocol, "pref": pref, "kind": "flower", "chain": 0})
        filters.append({"protocol": protocol, "pref": pref, "kind": "flower", "chain": 0, "options": options})
    else:
        left = [each for each in filters if each["pref"] != pref]
        if len(left) == len(filters):
            print("Error: Filter with specified priority/protocol not found.", file=sys.stderr)
            return 2
        filters = left
    path.write_text(json.dumps(filters))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
