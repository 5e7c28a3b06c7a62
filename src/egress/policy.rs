//! Which addresses messages may be sent to.
//!
//! A server that makes requests for others must not become a way into what only it can reach: the cloud provider's
//! metadata service, which hands out credentials, above all. The policy is asked twice: about host names and literal
//! addresses when a message is accepted ([`Policy::check_literal`]), and about every address right before it is
//! dialled ([`Policy::check_addr`]), since a name may resolve to something else by then.
//!
//! In order, the first that applies decides:
//! 1. what `egress_deny` names is refused;
//! 2. what `egress_allow` names is allowed, an allowed host name at whatever address;
//! 3. addresses that are never a receiver are refused: link-local, metadata, multicast, reserved and so on;
//! 4. loopback and private networks are allowed if `egress` is `private`, refused if it is `public`;
//! 5. the rest is the public internet, and allowed.
//!
//! An IPv6 address that carries an IPv4 address (mapped, NAT64, 6to4, Teredo, ISATAP) must pass as both.

mod list;
mod literal;
mod special;

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use self::list::List;
use self::literal::carried_v4;
pub use self::literal::parse_literal;
use self::special::{Class, Special, special};
use crate::domain::excerpt::Excerpt;

/// How far messages may go where no list says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Public addresses, loopback and private networks.
    Private,
    /// Public addresses only.
    Public,
}

/// The address policy. Cheap to ask, immutable; build it once.
#[derive(Debug, Clone)]
pub struct Policy {
    mode: Mode,
    allow: List,
    deny: List,
}

/// An entry of `egress_allow` or `egress_deny` that is neither an address, a network nor a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{entry}`: {reason}; allowed: an address, a network like 10.0.0.0/8, a host name, or *.domain")]
pub struct PolicyError {
    /// The list, by its setting's name.
    pub setting: &'static str,
    /// The entry as written.
    pub entry: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Why an address or host may not be reached. Its text says which rule refused and which setting would allow it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// The rule's name: stable, short, fit for a metric's label.
    pub rule: &'static str,
    /// The address or host name that was refused.
    pub address: String,
    why: Why,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    /// Named by this entry of `egress_deny`.
    Denied { entry: String },
    /// In that special range, itself or by the address that it carries.
    Special { special: &'static Special, carried: Option<IpAddr> },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, address, why } = self;
        let address = Excerpt(address);
        let (special, carried) = match why {
            Why::Denied { entry } => {
                return write!(
                    f,
                    "{address} is denied by `{entry}` (rule {rule}); remove that from egress_deny to permit it"
                );
            }
            Why::Special { special, carried } => (special, carried),
        };
        // The API's documented text for the one case that upstream's users know.
        if special.class == Class::Loopback {
            write!(f, "endpoint resolves to a loopback address: {address} (rule {rule})")?;
        } else {
            write!(f, "{address} ")?;
            if let Some(carried) = carried {
                write!(f, "stands for {carried}, which ")?;
            }
            write!(f, "is {} (rule {rule})", special.what)?;
        }
        match special.class {
            Class::Never => f.write_str("; add it to egress_allow to permit it"),
            Class::Loopback | Class::Private => {
                f.write_str("; set egress to private, or add it to egress_allow, to permit it")
            }
        }
    }
}

impl Policy {
    /// A policy of a mode and two lists. An entry is an address (`10.1.2.3`, `fd00::1`), a network (`10.0.0.0/8`), a
    /// host name (`hooks.internal`) or all names below a domain, without itself (`*.internal`). Names beyond ASCII are
    /// written with their letters or in their `xn--` form; hosts are compared in the latter.
    pub fn new(mode: Mode, allow: &[String], deny: &[String]) -> Result<Self, PolicyError> {
        Ok(Self { mode, allow: List::parse("egress_allow", allow)?, deny: List::parse("egress_deny", deny)? })
    }

    /// Checks an address that is about to be dialled; `host` is the name that it was resolved from, if any.
    pub fn check_addr(&self, host: Option<&str>, ip: IpAddr) -> Result<(), Refusal> {
        let address = ip;
        let ip = ip.to_canonical();
        let carried = carried_v4(ip);
        let all = || carried.iter().map(|v4| IpAddr::V4(*v4)).chain([ip]);
        let denied = host
            .and_then(|host| self.deny.name_entry(host))
            .or_else(|| all().find_map(|ip| self.deny.net_entry(ip)));
        if let Some(entry) = denied {
            let why = Why::Denied { entry };
            return Err(Refusal { rule: "egress_deny", address: address.to_string(), why });
        }
        if host.is_some_and(|host| self.allow.name_entry(host).is_some())
            || self.allow.net_entry(ip).is_some()
        {
            return Ok(());
        }
        for part in all().filter(|part| self.allow.net_entry(*part).is_none()) {
            if let Some(special) = special(part).filter(|special| !self.permits(special.class)) {
                let carried = Some(part).filter(|part| *part != ip);
                let why = Why::Special { special, carried };
                return Err(Refusal { rule: special.rule, address: address.to_string(), why });
            }
        }
        Ok(())
    }

    /// Checks a URL's host before anything is resolved. A literal address in any spelling that a resolver would accept
    /// is checked as [`Policy::check_addr`] does; of a name only the lists are asked.
    pub fn check_literal(&self, host: &str) -> Result<(), Refusal> {
        if let Some(ip) = parse_literal(host) {
            return self.check_addr(None, ip);
        }
        match self.deny.name_entry(host) {
            Some(entry) => {
                Err(Refusal { rule: "egress_deny", address: host.to_owned(), why: Why::Denied { entry } })
            }
            None => Ok(()),
        }
    }

    fn permits(&self, class: Class) -> bool {
        match class {
            Class::Never => false,
            Class::Loopback | Class::Private => self.mode == Mode::Private,
        }
    }
}

#[cfg(test)]
mod tests;
