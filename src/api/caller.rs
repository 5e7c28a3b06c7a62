//! Whose request it is, behind proxies.

use std::net::{IpAddr, Ipv6Addr};

use http::header::FORWARDED;
use http::request::Parts;
use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use super::Peer;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The publisher's address: the connection's, or, as long as that is a trusted proxy's, the one that the proxy saw.
///
/// The list of hops is read from its end: each proxy appends what it saw, so what stands before the last address that no
/// trusted proxy has is the client's own claim. A hop that names no address (`unknown`, `_hidden`, nonsense) ends the
/// walk at the proxy that wrote it. `X-Forwarded-For` counts if it has anything, else `Forwarded` (RFC 7239): nearly all
/// proxies write the former, and most pass a client's own `Forwarded` on.
pub(super) fn address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut address = peer.to_canonical();
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    if !is_trusted(address) {
        return address;
    }
    let mut hops = hops(headers, &FORWARDED_FOR, |line| line.rsplit(',').map(read_node).collect());
    if hops.is_empty() {
        hops = self::hops(headers, &FORWARDED, |line| {
            rsplit_unquoted(line, ',').into_iter().map(read_element).collect()
        });
    }
    for hop in hops {
        if !is_trusted(address) {
            break;
        }
        let Hop::Address(before) = hop else { break };
        address = before;
    }
    address
}

/// Whether a request came from a trusted proxy, whose headers count.
pub(super) fn is_trusted(parts: &Parts, trusted: &[IpNet]) -> bool {
    let peer = parts.extensions.get::<Peer>().map(|peer| peer.0.to_canonical());
    peer.is_some_and(|peer| trusted.iter().any(|network| network.contains(&peer)))
}

/// Where a request came from, as a proxy tells it.
enum Hop {
    Address(IpAddr),
    /// Not to be known.
    Unknown,
    /// Nothing between two commas: no hop at all (RFC 9110, 5.6.1).
    Empty,
}

/// The hops in all lines of a field, the last one first.
fn hops(headers: &HeaderMap, name: &HeaderName, read: impl Fn(&str) -> Vec<Hop>) -> Vec<Hop> {
    let lines: Vec<_> = headers.get_all(name).iter().collect();
    let read = |line: &&http::HeaderValue| read(&String::from_utf8_lossy(line.as_bytes()));
    lines.iter().rev().flat_map(read).filter(|hop| !matches!(hop, Hop::Empty)).collect()
}

/// Reads an element of `Forwarded`: pairs of name and value, of which `for` is wanted.
fn read_element(element: &str) -> Hop {
    if element.trim().is_empty() {
        return Hop::Empty;
    }
    let pairs = rsplit_unquoted(element, ';').into_iter().filter_map(|pair| pair.split_once('='));
    let node = pairs.into_iter().find(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    match node.map(|(_, value)| read_node(value)) {
        Some(Hop::Address(address)) => Hop::Address(address),
        _ => Hop::Unknown,
    }
}

/// Reads an address as RFC 7239 and proxies write it: in quotes or not, IPv6 in brackets or not, with a zone, a port or
/// the name of a hidden port.
fn read_node(text: &str) -> Hop {
    let text = text.trim();
    if text.is_empty() {
        return Hop::Empty;
    }
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text).trim();
    let host = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((host, port)) if port.is_empty() || port.starts_with(':') => host,
        Some(_) => return Hop::Unknown,
        None => text,
    };
    // The zone says by which interface, not which address.
    let host = match host.split_once('%') {
        Some((address, _)) if address.contains(':') => address,
        _ => host,
    };
    let v6 = || host.parse::<Ipv6Addr>().map(IpAddr::V6);
    let v4 = || host.split_once(':').map_or(host, |(host, _)| host).parse().map(IpAddr::V4);
    match v6().or_else(|_| v4()) {
        Ok(address) => Hop::Address(address.to_canonical()),
        Err(_) => Hop::Unknown,
    }
}

/// The parts between separators that stand outside of quotes, the last one first. Quotes are counted from the end, since
/// that is what the nearest proxy wrote: those that a client leaves open reach no further than its own part.
fn rsplit_unquoted(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut end, mut quoted) = (text.len(), false);
    for (at, c) in text.char_indices().rev() {
        if c == '"' && !text[..at].ends_with('\\') {
            quoted = !quoted;
        } else if c == separator && !quoted {
            parts.push(&text[at + separator.len_utf8()..end]);
            end = at;
        }
    }
    parts.push(&text[..end]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The address with these header lines, as bytes, behind the proxies in `trusted`.
    #[track_caller]
    fn check(peer: &str, lines: &[(HeaderName, &[u8])], trusted: &[&str], expected: &str) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, http::HeaderValue::from_bytes(value).unwrap());
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|network| network.parse().unwrap()).collect();
        let got = address(peer.parse().unwrap(), &headers, &trusted).to_string();
        let shown: Vec<_> = lines.iter().map(|(_, value)| String::from_utf8_lossy(value)).collect();
        assert_eq!(got, expected, "{shown:?}");
    }

    #[track_caller]
    fn check_x(peer: &str, lines: &[&str], trusted: &[&str], expected: &str) {
        let lines: Vec<_> = lines.iter().map(|line| (FORWARDED_FOR, line.as_bytes())).collect();
        check(peer, &lines, trusted, expected);
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        check_x("192.0.2.1", &["198.51.100.7"], &[], "192.0.2.1");
        check_x("192.0.2.1", &["198.51.100.7"], &["10.0.0.0/8"], "192.0.2.1");
        check_x("10.0.0.5", &["198.51.100.7"], &["10.0.0.0/8"], "198.51.100.7");
        check_x("::ffff:10.0.0.5", &["198.51.100.7"], &["10.0.0.0/8"], "198.51.100.7");
    }

    #[test]
    fn a_client_cannot_choose_its_address() {
        let trusted = &["10.0.0.0/8"];
        check_x("10.0.0.5", &["1.2.3.4, 198.51.100.7"], trusted, "198.51.100.7");
        check_x("10.0.0.5", &["1.2.3.4", "198.51.100.7, 10.0.0.9"], trusted, "198.51.100.7");
        check_x("10.0.0.5", &["\"1.2.3.4, 198.51.100.7"], trusted, "198.51.100.7");
        check_x("10.0.0.5", &["1.2.3.4, unknown, 10.0.0.9"], trusted, "10.0.0.9");
        for (claim, expected) in [
            ("for=\"1.2.3.4", "198.51.100.7"),
            ("for=\"[::1]\", for=1.2.3.4", "198.51.100.7"),
            ("for=1.2.3.4;by=\"", "198.51.100.7"),
        ] {
            let line = format!("{claim}, for=198.51.100.7;proto=https, for=\"10.0.0.9:80\"");
            check("10.0.0.5", &[(FORWARDED, line.as_bytes())], trusted, expected);
        }
        let line = b"\xff, 198.51.100.7";
        check("10.0.0.5", &[(FORWARDED_FOR, line)], trusted, "198.51.100.7");
    }

    #[test]
    fn hops_in_every_form() {
        let trusted = &["10.0.0.0/8", "fd00::/8"];
        for (node, expected) in [
            ("198.51.100.7", "198.51.100.7"),
            ("198.51.100.7:4711", "198.51.100.7"),
            ("198.51.100.7:_port", "198.51.100.7"),
            ("2001:db8::7", "2001:db8::7"),
            ("2001:DB8:0::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("[2001:db8::7]:4711", "2001:db8::7"),
            ("[2001:db8::7]:_port", "2001:db8::7"),
            ("::ffff:198.51.100.7", "198.51.100.7"),
            ("[::ffff:198.51.100.7]:80", "198.51.100.7"),
            ("fe80::7%eth0", "fe80::7"),
            ("[fe80::7%25eth0]:80", "fe80::7"),
            ("unknown", "10.0.0.5"),
            ("_hidden", "10.0.0.5"),
            ("_SEVKISEK:80", "10.0.0.5"),
            ("[2001:db8::7", "10.0.0.5"),
            ("[2001:db8::7]x", "10.0.0.5"),
            ("198.51.100.7%eth0", "10.0.0.5"),
            ("0198.51.100.7", "10.0.0.5"),
            ("example.com", "10.0.0.5"),
        ] {
            for line in [node.to_owned(), format!("\"{node}\""), format!(" \t{node} ,, ,")] {
                check_x("10.0.0.5", &[&line], trusted, expected);
            }
            for line in [
                format!("for=\"{node}\""),
                format!("For = \"{node}\" ; Proto=https;by=\"a,b;c\""),
                format!("proto=http;FOR=\"{node}\", ,"),
            ] {
                check("10.0.0.5", &[(FORWARDED, line.as_bytes())], trusted, expected);
            }
        }
        check("10.0.0.5", &[(FORWARDED, b"for=198.51.100.7")], trusted, "198.51.100.7");
        check(
            "10.0.0.5",
            &[(FORWARDED, b"for=198.51.100.7, for=10.0.0.8"), (FORWARDED, b"for=10.0.0.9")],
            trusted,
            "198.51.100.7",
        );
        // A proxy that doesn't say for whom.
        check("10.0.0.5", &[(FORWARDED, b"for=198.51.100.7, proto=https")], trusted, "10.0.0.5");
        check_x("10.0.0.5", &["10.0.0.7"], trusted, "10.0.0.7");
        check_x("10.0.0.5", &["198.51.100.7, fd00::9"], trusted, "198.51.100.7");
        check_x("10.0.0.5", &["", " , "], trusted, "10.0.0.5");
    }

    #[test]
    fn x_forwarded_for_goes_before_forwarded() {
        let forwarded = || (FORWARDED, &b"for=1.2.3.4"[..]);
        let trusted = &["10.0.0.0/8"];
        check("10.0.0.5", &[forwarded(), (FORWARDED_FOR, b"198.51.100.7")], trusted, "198.51.100.7");
        check("10.0.0.5", &[(FORWARDED_FOR, b"unknown"), forwarded()], trusted, "10.0.0.5");
        check("10.0.0.5", &[(FORWARDED_FOR, b" "), forwarded()], trusted, "1.2.3.4");
    }
}
