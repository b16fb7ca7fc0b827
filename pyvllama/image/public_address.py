"""Which IP addresses belong to the public internet, so that a server may fetch from them what its clients name.

Not `ipaddress.is_global`: what it means differs between Python's releases, it counts multicast as global, and it knows
nothing of IPv4 addresses that are wrapped in IPv6 ones, which a gateway or the kernel unwraps.
"""

import functools
import ipaddress
import socket

from pyvllama.image.limits import IPAddress

__all__ = ["why_not_public"]

# IANA's special-purpose registries and what they do not list. Only global unicast IPv6 (2000::/3) and the translation
# prefix of RFC 6052, judged by what is inside, are public at all.
_V4 = tuple(
    (ipaddress.IPv4Network(network), what)
    for network, what in (
        ("0.0.0.0/8", "stands for this machine"),
        ("10.0.0.0/8", "is private"),
        ("100.64.0.0/10", "is a provider's shared address"),  # Alibaba's metadata service, too
        ("127.0.0.0/8", "is loopback, this machine"),
        ("168.63.129.16/32", "is a cloud's service address"),  # Azure's, global by its number
        ("169.254.0.0/16", "is link-local"),  # cloud metadata services
        ("172.16.0.0/12", "is private"),
        ("192.0.0.0/24", "is reserved"),  # Oracle's metadata service
        ("192.0.2.0/24", "is for documentation"),
        ("192.88.99.0/24", "is a relay's"),
        ("192.168.0.0/16", "is private"),
        ("198.18.0.0/15", "is for benchmarks"),
        ("198.51.100.0/24", "is for documentation"),
        ("203.0.113.0/24", "is for documentation"),
        ("224.0.0.0/4", "is multicast"),
        ("240.0.0.0/4", "is reserved"),
    )
)
_V6_PUBLIC = ipaddress.IPv6Network("2000::/3")
_V6 = tuple(
    (ipaddress.IPv6Network(network), what)
    for network, what in (
        ("2001::/23", "is reserved"),  # Teredo (2001::/32) among it
        ("2001:db8::/32", "is for documentation"),
        ("3fff::/20", "is for documentation"),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_6TO4 = ipaddress.IPv6Network("2002::/16")
_ISATAP = (0x00005EFE, 0x02005EFE)  # the upper half of the interface id; the lower is an IPv4 address


def why_not_public(address: IPAddress) -> str | None:
    """Why an address is not one of the public internet, to be put behind its name; None if it is one.

    This machine's own addresses are refused too, public or not: services that a firewall hides listen there.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = _inner(address)
        if inner is not None and (reason := why_not_public(inner)) is not None:
            return f"holds {inner}, which {reason}"
        if address.ipv4_mapped is not None or address in _NAT64:
            return None
        if address not in _V6_PUBLIC:
            return _what_else(address)
        reason = next((what for network, what in _V6 if address in network), None)
    else:
        reason = next((what for network, what in _V4 if address in network), None)
    return reason or ("is this machine's own" if _is_own(address) else None)


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to."""
    number = int(address)
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64 or (number >> 32 & 0xFFFFFFFF) in _ISATAP:
        return ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address in _6TO4:
        return ipaddress.IPv4Address(number >> 80 & 0xFFFFFFFF)
    return None


def _what_else(address: ipaddress.IPv6Address) -> str:
    if address.is_loopback or address.is_unspecified:
        return "is this machine"
    if address.is_multicast:
        return "is multicast"
    return "is link-local" if address.is_link_local else "is not public"


def _is_own(address: IPAddress) -> bool:
    """Whether an interface of this machine has the address: one can listen there, and nowhere else."""
    return not _anything_goes() and _can_bind(address)


@functools.cache
def _anything_goes() -> bool:
    """Whether this machine lets one listen at any address (Linux's ip_nonlocal_bind): then that proves nothing."""
    return _can_bind(ipaddress.IPv4Address("192.0.2.1")) or _can_bind(ipaddress.IPv6Address("2001:db8::1"))


def _can_bind(address: IPAddress) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((str(address), 0))
    except OSError:
        return False
    return True
