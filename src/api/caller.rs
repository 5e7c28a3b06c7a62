//! Whose request it is, behind proxies.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The publisher's address: the connection's, or, as long as that is a trusted proxy's, the one that the proxy saw.
///
/// `X-Forwarded-For` is read from its end: each proxy appends what it saw, so what stands before the last address that
/// no trusted proxy has is the client's own claim.
pub(super) fn address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut address = peer.to_canonical();
    if trusted.is_empty() {
        return address;
    }
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    let seen: Vec<&str> = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .collect();
    for text in seen.into_iter().rev() {
        if !is_trusted(address) {
            break;
        }
        let Ok(before) = text.trim().parse::<IpAddr>() else { break };
        address = before.to_canonical();
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(peer: &str, forwarded: &[&str], trusted: &[&str], expected: &str) {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, value.parse().unwrap());
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|network| network.parse().unwrap()).collect();
        assert_eq!(address(peer.parse().unwrap(), &headers, &trusted).to_string(), expected);
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        check("192.0.2.1", &["198.51.100.7"], &[], "192.0.2.1");
        check("192.0.2.1", &["198.51.100.7"], &["10.0.0.0/8"], "192.0.2.1");
        check("10.0.0.5", &["198.51.100.7"], &["10.0.0.0/8"], "198.51.100.7");
        check("::ffff:10.0.0.5", &["198.51.100.7"], &["10.0.0.0/8"], "198.51.100.7");
    }

    #[test]
    fn a_client_cannot_choose_its_address() {
        check("10.0.0.5", &["1.2.3.4, 198.51.100.7"], &["10.0.0.0/8"], "198.51.100.7");
        check("10.0.0.5", &["1.2.3.4", "198.51.100.7, 10.0.0.9"], &["10.0.0.0/8"], "198.51.100.7");
        check("10.0.0.5", &["nonsense"], &["10.0.0.0/8"], "10.0.0.5");
    }
}
