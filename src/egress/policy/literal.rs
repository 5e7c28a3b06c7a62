//! The many ways to write an address, and the addresses inside addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address that a URL's host is, if it is one in any spelling that a resolver might take: `127.0.0.1`, `127.1`,
/// `0x7f.1`, `0177.0.0.1`, `2130706433`, `[::1]`, `::1`, `[fe80::1%eth0]`, each with or without a final dot.
pub fn parse_literal(host: &str) -> Option<IpAddr> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if bare.contains(':') {
        // The zone says by which interface, not to which address.
        let without_zone = bare.split('%').next().unwrap_or(bare);
        return without_zone.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    parse_inet_aton(bare).map(IpAddr::V4)
}

/// An IPv4 address as C's `inet_aton` reads it: one to four parts, decimal, octal (`0…`) or hexadecimal (`0x…`), of
/// which the last one fills all bytes that are left.
fn parse_inet_aton(text: &str) -> Option<Ipv4Addr> {
    let parts: Vec<u32> = text.split('.').map(parse_part).collect::<Option<_>>()?;
    let (last, leading) = parts.split_last()?;
    if leading.len() > 3 || leading.iter().any(|part| *part > 255) {
        return None;
    }
    let free_bits = 32 - 8 * leading.len();
    if u64::from(*last) >> free_bits != 0 {
        return None;
    }
    let high = leading.iter().enumerate().fold(0, |sum, (i, part)| sum | part << (24 - 8 * i));
    Some(Ipv4Addr::from(high | last))
}

fn parse_part(part: &str) -> Option<u32> {
    let (digits, radix) = if let Some(hex) = part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
        (hex, 16)
    } else if part.len() > 1 && part.starts_with('0') {
        (&part[1..], 8)
    } else {
        (part, 10)
    };
    if digits.is_empty() && radix == 16 {
        return Some(0);
    }
    // `from_str_radix` would take a sign.
    if digits.starts_with('+') { None } else { u32::from_str_radix(digits, radix).ok() }
}

/// The IPv4 addresses that an IPv6 address may lead to on a network that translates or tunnels.
pub(super) fn carried_v4(ip: IpAddr) -> Vec<Ipv4Addr> {
    let IpAddr::V6(v6) = ip else { return Vec::new() };
    let b = v6.octets();
    let v4 = |at: [usize; 4]| Ipv4Addr::from(at.map(|i| b[i]));
    let end = v4([12, 13, 14, 15]);
    let mut carried = match v6.segments() {
        // Unspecified and loopback, which are what they are.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => return Vec::new(),
        // Compatible (`::a.b.c.d`), mapped, translated, and NAT64 by the well-known prefix.
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _]
        | [0, 0, 0, 0, 0xffff, 0, _, _]
        | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => {
            vec![end]
        }
        // NAT64 by a local prefix (RFC 8215), whose length only that network knows. The address stands right behind the
        // prefix, around byte 8, and what follows should be zero, but a translator may not look (RFC 6052, 2.2). So all
        // places count, but for those that only hold such zeros.
        [0x64, 0xff9b, 1, ..] => {
            let places = [[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], [12, 13, 14, 15]];
            let zeros = b.iter().rev().take_while(|byte| **byte == 0).count();
            let likely = match zeros {
                5.. => 0,
                4 => 1,
                3 => 2,
                _ => 3,
            };
            let counts = |(i, address): &(usize, Ipv4Addr)| *i == likely || address.octets()[0] != 0;
            places.map(v4).into_iter().enumerate().filter(counts).map(|(_, address)| address).collect()
        }
        // 6to4.
        [0x2002, ..] => vec![v4([2, 3, 4, 5])],
        // Teredo: the relay's server, and the client behind its NAT, inverted.
        [0x2001, 0, ..] => vec![v4([4, 5, 6, 7]), Ipv4Addr::from(!u32::from(end))],
        _ => Vec::new(),
    };
    // ISATAP, by its interface identifier under any prefix (RFC 5214, 6.1); two bits of it say how unique it is.
    let [.., identifier, 0x5efe, _, _] = v6.segments() else { return carried };
    if identifier & !0x0300 == 0 {
        carried.push(end);
    }
    carried
}
