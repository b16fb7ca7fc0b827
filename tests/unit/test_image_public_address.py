"""Addresses that a server's clients may have it contact, and those that they may not."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvllama.image import public_address
from pyvllama.image.public_address import why_not_public

INSIDE = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 100.100.100.200 127.0.0.1 127.255.255.254
168.63.129.16 169.254.169.254 169.254.0.1 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1
192.168.0.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1
255.255.255.255 :: ::1 ::127.0.0.1 ::10.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254
::ffff:0:0 ::ffff:0:127.0.0.1 ::ffff:0:8.8.8.8 64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254
64:ff9b:1::1 64:ff9b:1::7f00:1 100::1 2001::1 2001:0:7f00:1:: 2001:20::1 2001:db8::1 2002:7f00:1:: 2002:a00:1::
2002:a9fe:a9fe::1 2002:c0a8:1:: 2a00::5efe:127.0.0.1 2a00::200:5efe:192.168.0.1 fe80::5efe:8.8.8.8 3fff::1
4000::1 5f00::1 fc00::1 fd00:ec2::254 fd20:ce::254 fe80::1 febf::1 fec0::1 ff02::1 ff0e::1 ffff::1
""".split()  # noqa: SIM905 (a table)
PUBLIC = """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.1 93.184.216.34 100.63.255.255 100.128.0.1 126.255.255.255 128.0.0.1
168.63.129.15 168.63.129.17 169.253.255.255 169.255.0.1 172.15.255.255 172.32.0.1 192.0.1.1 192.167.255.255
192.169.0.1 198.17.255.255 198.20.0.1 223.255.255.255 2606:4700::1111 2a00:1450::1 2001:4860:4860::8888 2003::1
::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1
""".split()  # noqa: SIM905 (a table)


@pytest.mark.parametrize("address", INSIDE)
def test_inside(address):
    assert why_not_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address):
    assert why_not_public(ipaddress.ip_address(address)) is None


v4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
v6 = st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address)


@given(v4)
def test_whoever_is_not_global_is_inside(address):
    """Python's own table, whatever its release, allows nothing less than ours."""
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert why_not_public(address)


@given(v6)
def test_of_ipv6_too(address):
    wrapped = address.ipv4_mapped or address in ipaddress.ip_network("64:ff9b::/96")
    if not wrapped and (not address.is_global or address.is_multicast or address.is_reserved):
        assert why_not_public(address)


@given(v4)
@pytest.mark.parametrize("wrap", ["::ffff:{}", "64:ff9b::{}", "2a00::5efe:{}"])
def test_a_wrapped_address_is_as_public_as_what_is_inside(wrap, address):
    outer = ipaddress.IPv6Address(wrap.format(address))
    assert bool(why_not_public(outer)) == bool(why_not_public(address))


def test_reasons():
    assert (
        why_not_public(ipaddress.ip_address("64:ff9b::127.0.0.1")) == "holds 127.0.0.1, which is loopback, this machine"
    )
    assert why_not_public(ipaddress.ip_address("169.254.169.254")) == "is link-local"


def test_our_own_public_address(monkeypatch):
    """What listens there may be behind a firewall for everybody else."""
    monkeypatch.setattr(public_address, "_can_bind", lambda address: str(address) == "8.8.8.8")
    public_address._anything_goes.cache_clear()
    assert why_not_public(ipaddress.ip_address("8.8.8.8")) == "is this machine's own"
    assert why_not_public(ipaddress.ip_address("::ffff:8.8.8.8")) == "holds 8.8.8.8, which is this machine's own"
    assert why_not_public(ipaddress.ip_address("8.8.4.4")) is None
    public_address._anything_goes.cache_clear()


def test_a_machine_that_binds_to_anything_proves_nothing(monkeypatch):
    monkeypatch.setattr(public_address, "_can_bind", lambda address: True)
    public_address._anything_goes.cache_clear()
    assert why_not_public(ipaddress.ip_address("8.8.8.8")) is None
    public_address._anything_goes.cache_clear()


def test_binding_tells_own_addresses():
    assert public_address._can_bind(ipaddress.ip_address("127.0.0.1"))
    assert not public_address._can_bind(ipaddress.ip_address("8.8.8.8"))
