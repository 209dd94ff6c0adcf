"""Which packets, in the words of tc-flower(8)."""

from __future__ import annotations

import ipaddress

from hal.errors import InvalidArgument
from hal.interfaces.dpu import FlowMatch

Variant = tuple[str, tuple[str, ...]]
"""A filter's protocol, and the words that follow ``flower``."""

_PROTOCOLS = {0x0800: "ip", 0x86DD: "ipv6", 0x0806: "arp"}
_TCP, _UDP, _SCTP, _ICMP, _ICMP6 = 6, 17, 132, 1, 58
_NAMES = {_TCP: "tcp", _UDP: "udp", _SCTP: "sctp", _ICMP: "icmp", _ICMP6: "icmpv6"}


def variants(match: FlowMatch, device: str, step: str) -> tuple[Variant, ...]:
    """Return the filters that a match becomes: one for each IP version where it names none.

    Raises ``InvalidArgument`` for what no packet can be, or what tc cannot say.
    """

    def wrong(what: str, hint: str) -> InvalidArgument:
        return InvalidArgument(what, device=device, during=step, hint=hint)

    versions: set[int] = set()
    words: list[str] = []
    for key, text in (("src_ip", match.source), ("dst_ip", match.destination)):
        if text is None:
            continue
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise wrong(f"{text!r} is no address: {error}", "10.0.0.0/8 or fe80::/10") from None
        versions.add(network.version)
        words += [key, str(network)]
    if len(versions) == 2:
        raise wrong("one address is IPv4, the other IPv6", "both of one version")
    if match.protocol is not None and not 0 <= match.protocol < 256:
        raise wrong(f"protocol {match.protocol}", "the IP protocol's number: 6 is TCP, 17 UDP")
    if (match.source_port is not None or match.destination_port is not None) and match.protocol not in (
        _TCP,
        _UDP,
        _SCTP,
    ):
        raise wrong("a port without TCP, UDP or SCTP", "protocol=6 or protocol=17")
    if match.protocol is not None:
        words = ["ip_proto", _NAMES.get(match.protocol, hex(match.protocol)), *words]
    for key, port in (("src_port", match.source_port), ("dst_port", match.destination_port)):
        if port is not None:
            if not 0 <= port < 65536:
                raise wrong(f"port {port}", "0 to 65535")
            words += [key, str(port)]
    if match.vlan is not None and not 0 <= match.vlan < 4096:
        raise wrong(f"VLAN {match.vlan}", "0 to 4095")
    if match.ethertype is not None and not 0 <= match.ethertype < 65536:
        raise wrong(f"ethertype {match.ethertype}", "0x0800")
    implied = {4: 0x0800, 6: 0x86DD}
    if match.ethertype is not None:
        types: list[int | None] = [match.ethertype]
        if (words and match.ethertype not in implied.values()) or any(implied[v] != match.ethertype for v in versions):
            raise wrong(f"ethertype {match.ethertype:#06x} has no such fields", "0x0800 for IPv4, 0x86dd for IPv6")
    elif versions:
        types = [implied[version] for version in versions]
    else:
        types = [0x0800, 0x86DD] if words else [None]
    found: list[Variant] = []
    for kind in types:
        name = "all" if kind is None else _PROTOCOLS.get(kind, hex(kind))
        if match.vlan is None:
            found.append((name, tuple(words)))
        elif kind is None:
            found.append(("802.1Q", ("vlan_id", str(match.vlan))))
        else:  # the protocol is the tag's; what is inside it stands among the keys
            found.append(("802.1Q", ("vlan_id", str(match.vlan), "vlan_ethtype", name, *words)))
    return tuple(found)
