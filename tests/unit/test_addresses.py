"""Which addresses a webhook may go to, as a table."""

import pytest

from models.addresses import is_public

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
    "2a00:1450:4001:800::200e",
]
REFUSED = {
    "unspecified": ["0.0.0.0", "::"],
    "this network": ["0.1.2.3", "0.255.255.255"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": [
        "10.0.0.0",
        "10.255.255.255",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
        "192.168.255.255",
        "fc00::1",
        "fd00:ec2::254",
    ],
    "link-local": [
        "169.254.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "fe80::1",
        "fe80::1%eth0",
        "febf::1",
    ],
    "site-local": ["fec0::1"],
    "carrier-grade NAT": ["100.64.0.1", "100.100.100.200", "100.127.255.255"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "broadcast and reserved": ["240.0.0.1", "255.255.255.255"],
    "protocol assignments": ["192.0.0.1", "192.0.0.192", "2001:1::1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "benchmarks": ["198.18.0.1", "198.19.255.255", "2001:2::1"],
    "6to4": ["192.88.99.1", "2002:7f00:1::1", "2002:808:808::1"],
    "Teredo": ["2001::1", "2001:0:7f00:1::"],
    "IPv4-mapped": ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::ffff:8.8.8.8"],
    "IPv4-compatible": ["::127.0.0.1", "::8.8.8.8"],
    "IPv4-translated": ["::ffff:0:127.0.0.1"],
    "NAT64": ["64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::a00:1"],
    "discard": ["100::1"],
    "given back": ["3ffe::1"],
    "segment routing": ["5f00::1"],
    "scoped": ["2606:4700:4700::1111%eth0"],
    "no address": ["", "localhost", "127.1", "0x7f000001", "2130706433", "1.1.1.1 ", "1.1.1.01"],
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("kind", "address"), [(kind, each) for kind, listed in REFUSED.items() for each in listed]
)
def test_refused(kind: str, address: str) -> None:
    assert not is_public(address), kind
