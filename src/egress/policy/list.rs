//! The entries of `egress_allow` and `egress_deny`.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use super::PolicyError;
use super::literal::parse_literal;
use crate::domain::destination::host_to_ascii;

/// A parsed list; each entry is kept as written, for messages.
#[derive(Debug, Clone)]
pub(super) struct List(Vec<(Entry, String)>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Net(IpNet),
    /// A host name, in lower case and in its `xn--` form.
    Name(String),
    /// What names below a domain end with, its dot included, in lower case and in its `xn--` form.
    Below(String),
}

impl List {
    pub(super) fn parse(setting: &'static str, entries: &[String]) -> Result<Self, PolicyError> {
        let parse = |entry: &String| match Entry::parse(entry.trim()) {
            Ok(parsed) => Ok((parsed, entry.clone())),
            Err(reason) => Err(PolicyError { setting, entry: entry.clone(), reason }),
        };
        entries.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// The entry whose network holds this address.
    pub(super) fn net_entry(&self, ip: IpAddr) -> Option<String> {
        self.find(|entry| matches!(entry, Entry::Net(net) if net.contains(&ip)))
    }

    /// The entry that names this host.
    pub(super) fn name_entry(&self, host: &str) -> Option<String> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        self.find(|entry| match entry {
            Entry::Net(_) => false,
            Entry::Name(name) => *name == host,
            Entry::Below(end) => host.len() > end.len() && host.ends_with(end),
        })
    }

    fn find(&self, matches: impl Fn(&Entry) -> bool) -> Option<String> {
        self.0.iter().find(|(entry, _)| matches(entry)).map(|(_, text)| text.clone())
    }
}

impl Entry {
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(net) = text.parse::<IpNet>() {
            return if net == net.trunc() {
                Ok(Self::Net(canonical(net)))
            } else {
                Err(format!("the network of that size is {}", net.trunc()))
            };
        }
        let (name, below) = match text.strip_prefix("*.") {
            Some(domain) => (domain, true),
            None => (text, false),
        };
        let name = if name.is_ascii() {
            name.to_owned()
        } else {
            host_to_ascii(name).map_err(|why| format!("not a host name{why}"))?
        };
        if let Some(ip) = parse_literal(&name).filter(|_| !below) {
            return Ok(Self::Net(ip.to_canonical().into()));
        }
        if text.contains('/') {
            return Err("not a network".to_owned());
        }
        if text.contains(':') {
            return Err("not an address, and a host name has no port".to_owned());
        }
        let name = name.strip_suffix('.').unwrap_or(&name).to_ascii_lowercase();
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let label = |label: &str| (1..=63).contains(&label.len()) && label.chars().all(fits);
        // No top-level domain is a number: this is an address with a slip in it.
        let numeric_end = name.rsplit('.').next().is_some_and(|end| end.bytes().all(|b| b.is_ascii_digit()));
        if !name.split('.').all(label) || numeric_end {
            return Err("not a host name".to_owned());
        }
        Ok(if below { Self::Below(format!(".{name}")) } else { Self::Name(name) })
    }
}

/// A network of IPv4-mapped addresses as the IPv4 network it is, since addresses are compared in that form.
fn canonical(net: IpNet) -> IpNet {
    const MAPPED_PREFIX_LEN: u8 = 96;
    let mapped = |ip: Ipv6Addr| ip.to_ipv4_mapped();
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_PREFIX_LEN => mapped(v6.addr())
            .and_then(|ip| Ipv4Net::new(ip, v6.prefix_len() - MAPPED_PREFIX_LEN).ok())
            .map_or(net, IpNet::V4),
        _ => net,
    }
}
