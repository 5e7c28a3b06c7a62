//! The addresses that are not the public internet, by IANA's special-purpose registries and the cloud providers'
//! documents.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What kind of special address one is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Special {
    /// The rule's name in refusals and metrics.
    pub(super) rule: &'static str,
    /// Completes "ADDRESS is ….".
    pub(super) what: &'static str,
    pub(super) class: Class,
}

/// Who lets a special address pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Only `egress_allow`.
    Never,
    /// The mode `private`; the public mode's refusal has a text of its own.
    Loopback,
    /// The mode `private`.
    Private,
}

const fn never(rule: &'static str, what: &'static str) -> Special {
    Special { rule, what, class: Class::Never }
}

const fn private(rule: &'static str, what: &'static str) -> Special {
    Special { rule, what, class: Class::Private }
}

static METADATA: Special = never("cloud-metadata", "a cloud metadata address");
static UNSPECIFIED: Special = never("unspecified", "an unspecified address");
static LINK_LOCAL: Special = never("link-local", "a link-local address");
static MULTICAST: Special = never("multicast", "a multicast address");
static BROADCAST: Special = never("broadcast", "the broadcast address");
static DOCUMENTATION: Special = never("documentation", "an address for documentation");
static BENCHMARKING: Special = never("benchmarking", "an address for benchmarks");
static DISCARD: Special = never("discard-only", "a discard-only address");
static RESERVED: Special = never("reserved", "a reserved address");
static LOOPBACK: Special = Special { rule: "loopback", what: "a loopback address", class: Class::Loopback };
static PRIVATE: Special = private("private-network", "a private network's address");
static UNIQUE_LOCAL: Special = private("unique-local", "a unique-local address");
static SHARED: Special = private("carrier-grade-nat", "a carrier-grade NAT address");
/// Judged by the IPv4 address that it carries, but not routed on the public internet as such.
static TRANSITION: Special = private("transition", "an IPv6 transition address");

const fn v4(a: u8, b: u8, c: u8, d: u8, len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len))
}

/// The IPv6 network whose address starts with these segments; the others are zero.
const fn v6(start: &[u16], len: u8) -> IpNet {
    let mut s = [0; 8];
    let mut i = 0;
    while i < start.len() {
        s[i] = start[i];
        i += 1;
    }
    v6_of(s, len)
}

const fn v6_of(s: [u16; 8], len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]), len))
}

/// `None` is an exception that is globally reachable.
type Range = (IpNet, Option<&'static Special>);

/// The first that holds the address decides, so exceptions stand before the range they are in.
static V4: [Range; 25] = [
    // Amazon, Google, Azure, Oracle, DigitalOcean, Hetzner and most others.
    (v4(169, 254, 169, 254, 32), Some(&METADATA)),
    // Amazon's credentials for ECS tasks and EKS pods.
    (v4(169, 254, 170, 2, 32), Some(&METADATA)),
    (v4(169, 254, 170, 23, 32), Some(&METADATA)),
    // Alibaba's is in carrier-grade NAT space, Oracle's older one in a protocol range, Azure's in a public one.
    (v4(100, 100, 100, 200, 32), Some(&METADATA)),
    (v4(192, 0, 0, 192, 32), Some(&METADATA)),
    (v4(168, 63, 129, 16, 32), Some(&METADATA)),
    (v4(0, 0, 0, 0, 8), Some(&UNSPECIFIED)),
    (v4(127, 0, 0, 0, 8), Some(&LOOPBACK)),
    (v4(10, 0, 0, 0, 8), Some(&PRIVATE)),
    (v4(172, 16, 0, 0, 12), Some(&PRIVATE)),
    (v4(192, 168, 0, 0, 16), Some(&PRIVATE)),
    (v4(100, 64, 0, 0, 10), Some(&SHARED)),
    (v4(169, 254, 0, 0, 16), Some(&LINK_LOCAL)),
    // Two anycast services in the IETF's protocol range.
    (v4(192, 0, 0, 9, 32), None),
    (v4(192, 0, 0, 10, 32), None),
    (v4(192, 0, 0, 0, 24), Some(&RESERVED)),
    (v4(192, 0, 2, 0, 24), Some(&DOCUMENTATION)),
    (v4(198, 51, 100, 0, 24), Some(&DOCUMENTATION)),
    (v4(203, 0, 113, 0, 24), Some(&DOCUMENTATION)),
    // The former 6to4 relays.
    (v4(192, 88, 99, 0, 24), Some(&RESERVED)),
    (v4(198, 18, 0, 0, 15), Some(&BENCHMARKING)),
    (v4(224, 0, 0, 0, 4), Some(&MULTICAST)),
    (v4(255, 255, 255, 255, 32), Some(&BROADCAST)),
    (v4(240, 0, 0, 0, 4), Some(&RESERVED)),
    (v4(0, 0, 0, 0, 0), None),
];

/// As [`V4`]. It ends with the global unicast range; what is outside of it is not assigned to anyone.
static V6: [Range; 34] = [
    // Amazon's metadata and its credentials for EKS pods.
    (v6_of([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128), Some(&METADATA)),
    (v6_of([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128), Some(&METADATA)),
    // Google, Oracle, Scaleway.
    (v6_of([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128), Some(&METADATA)),
    (v6_of([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128), Some(&METADATA)),
    (v6_of([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42], 128), Some(&METADATA)),
    (v6_of([0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128), Some(&METADATA)),
    (v6(&[], 128), Some(&UNSPECIFIED)),
    (v6_of([0, 0, 0, 0, 0, 0, 0, 1], 128), Some(&LOOPBACK)),
    // NAT64: the well-known prefix is judged by the address that it carries, alone.
    (v6(&[0x64, 0xff9b], 96), None),
    (v6(&[0x64, 0xff9b, 1], 48), Some(&TRANSITION)),
    (v6(&[0x100], 64), Some(&DISCARD)),
    (v6(&[0x100, 0, 0, 1], 64), Some(&DISCARD)),
    (v6(&[0x2001], 32), Some(&TRANSITION)),
    // Global parts of the IETF's protocol range: anycast services, AMT, AS112, ORCHIDv2, drone ids.
    (v6_of([0x2001, 1, 0, 0, 0, 0, 0, 1], 128), None),
    (v6_of([0x2001, 1, 0, 0, 0, 0, 0, 2], 128), None),
    (v6_of([0x2001, 1, 0, 0, 0, 0, 0, 3], 128), None),
    (v6(&[0x2001, 3], 32), None),
    (v6(&[0x2001, 4, 0x112], 48), None),
    (v6(&[0x2001, 0x20], 28), None),
    (v6(&[0x2001, 0x30], 28), None),
    (v6(&[0x2001, 2], 48), Some(&BENCHMARKING)),
    (v6(&[0x2001], 23), Some(&RESERVED)),
    (v6(&[0x2001, 0xdb8], 32), Some(&DOCUMENTATION)),
    (v6(&[0x3fff], 20), Some(&DOCUMENTATION)),
    (v6(&[0x2002], 16), Some(&TRANSITION)),
    // Segment routing ids.
    (v6(&[0x5f00], 16), Some(&RESERVED)),
    (v6(&[0xfc00], 7), Some(&UNIQUE_LOCAL)),
    (v6(&[0xfe80], 10), Some(&LINK_LOCAL)),
    // Site-local, given up for unique-local.
    (v6(&[0xfec0], 10), Some(&RESERVED)),
    (v6(&[0xff00], 8), Some(&MULTICAST)),
    // 6bone, returned.
    (v6(&[0x3ffe], 16), Some(&RESERVED)),
    // IPv4-compatible and the like.
    (v6(&[], 8), Some(&RESERVED)),
    (v6(&[0x2000], 3), None),
    (v6(&[], 0), Some(&RESERVED)),
];

/// What is special about an address. `None`: it is the public internet's.
pub(super) fn special(ip: IpAddr) -> Option<&'static Special> {
    let ranges: &[Range] = if ip.is_ipv4() { &V4 } else { &V6 };
    ranges.iter().find(|(net, _)| net.contains(&ip)).and_then(|(_, special)| *special)
}
