"""Which addresses a webhook may go to: public ones of the internet and no others. Pure.

What is refused, by IANA's registries of special-purpose addresses: this host and its networks
(loopback, private, link-local, carrier-grade NAT), what no single host has (multicast, broadcast,
reserved, documentation, benchmarks), and every form of IPv6 that carries an IPv4 address inside
(mapped, compatible, translated by NAT64, 6to4, Teredo): such a form leads wherever that address does.
Stated here rather than left to `ipaddress.is_global`, which differs between releases of Python.
"""

import ipaddress

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_REFUSED_4: tuple[_Network, ...] = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; on Linux, 0.0.0.0 is this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "168.63.129.16/32",  # a public address that serves the inside of Azure's machines
        "169.254.0.0/16",  # link-local, and the metadata services of clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
"""All that is routed on the internet; NAT64, mapped, private, link-local, multicast lie outside."""

_REFUSED_6: tuple[_Network, ...] = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3ffe::/16",  # 6bone, given back
        "3fff::/20",  # documentation
    )
)


def is_public(address: str) -> bool:
    """Whether a numeric address, as a socket takes it, is one of the public internet."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        return not any(parsed in network for network in _REFUSED_4)
    # A scope names an interface of this machine.
    if parsed.scope_id is not None:
        return False
    return parsed in _GLOBAL_6 and not any(parsed in network for network in _REFUSED_6)
