use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;

fn policy(mode: Mode, allow: &[&str], deny: &[&str]) -> Policy {
    let owned = |list: &[&str]| list.iter().map(|&entry| entry.to_owned()).collect::<Vec<_>>();
    Policy::new(mode, &owned(allow), &owned(deny)).unwrap()
}

fn private() -> Policy {
    policy(Mode::Private, &[], &[])
}

fn public() -> Policy {
    policy(Mode::Public, &[], &[])
}

/// The rule that refuses a host, if one does.
fn rule(policy: &Policy, host: &str) -> Option<&'static str> {
    policy.check_literal(host).err().map(|refusal| refusal.rule)
}

/// Networks that no mode reaches.
const NEVER: [&str; 28] = [
    "0.0.0.0/8",
    "169.254.0.0/16",
    "100.100.100.200/32",
    "192.0.0.192/32",
    "168.63.129.16/32",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::2:0:0/96",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "100::/64",
    "2001:2::/48",
    "2001:10::/28",
    "2001:db8::/32",
    "3fff::/20",
    "5f00::/16",
    "4000::/3",
    "fd00:ec2::254/128",
    "fd20:ce::254/128",
    "fd00:c1::a9fe:a9fe/128",
    "e000::/4",
];

/// Networks that only the mode `private` reaches.
const PRIVATE: [&str; 6] =
    ["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"];

/// Any address of one of these networks.
fn address_in(nets: &'static [&'static str]) -> impl Strategy<Value = IpAddr> {
    (prop::sample::select(nets), any::<u128>()).prop_map(|(net, random)| match net.parse().unwrap() {
        IpNet::V4(net) => {
            let host = u32::try_from(random & u128::from(u32::from(net.hostmask()))).unwrap();
            Ipv4Addr::from(u32::from(net.network()) | host).into()
        }
        IpNet::V6(net) => {
            Ipv6Addr::from(u128::from(net.network()) | random & u128::from(net.hostmask())).into()
        }
    })
}

/// All the IPv6 addresses that lead to an IPv4 address.
fn carriers(v4: Ipv4Addr) -> Vec<Ipv6Addr> {
    let [a, b, c, d] = v4.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    vec![
        v4.to_ipv6_mapped(),
        Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
        Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
        Ipv6Addr::new(0x64, 0xff9b, 1, high, u16::from(c), u16::from(d) << 8, 0, 0),
        Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0x5efe, high, low),
        Ipv6Addr::new(0xfd00, 1, 2, 3, 0x200, 0x5efe, high, low),
        Ipv6Addr::new(0x2002, 0x808, 0x808, 0, 0x200, 0x5efe, high, low),
        Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
        Ipv6Addr::new(0x2001, 0, high, low, 0, 0, !0x101, !0x101),
        Ipv6Addr::new(0x2001, 0, 0x101, 0x101, 0, 0, !high, !low),
    ]
}

/// Spellings of an IPv4 address that a resolver takes.
fn spellings(v4: Ipv4Addr) -> Vec<String> {
    let [a, b, c, d] = v4.octets();
    let (all, low24, low16) = (u32::from(v4), u32::from(v4) & 0xff_ffff, u32::from(v4) & 0xffff);
    vec![
        format!("{v4}"),
        format!("{v4}."),
        format!("{all}"),
        format!("{all:#x}"),
        format!("0{all:o}"),
        format!("{a}.{low24}"),
        format!("{a}.{b}.{low16}"),
        format!("{a:#x}.{b:#X}.{c:#04x}.{d}"),
        format!("0{a:o}.0{b:o}.000{c:o}.{d}"),
        format!("{a:#x}.{low24}"),
        format!("[::ffff:{v4}]"),
        format!("::ffff:{v4}"),
        format!("[::ffff:{v4}%eth0]"),
    ]
}

proptest! {
    #[test]
    fn what_is_never_reached_is_refused_in_both_modes(ip in address_in(&NEVER)) {
        prop_assert!(private().check_addr(None, ip).is_err(), "{}", ip);
        prop_assert!(public().check_addr(Some("example.com"), ip).is_err(), "{}", ip);
    }

    #[test]
    fn private_networks_are_reached_in_one_mode(ip in address_in(&PRIVATE)) {
        // Metadata addresses are the exception.
        if rule(&private(), &ip.to_string()) != Some("cloud-metadata") {
            prop_assert!(private().check_addr(None, ip).is_ok(), "{}", ip);
        }
        prop_assert!(public().check_addr(None, ip).is_err(), "{}", ip);
    }

    /// An address that is refused is refused in every form that leads to it.
    #[test]
    fn a_carrier_is_no_way_around(
        random in any::<u32>(),
        special in address_in(&NEVER),
        mode in prop::sample::select(&[Mode::Private, Mode::Public]),
    ) {
        let policy = policy(mode, &[], &["8.0.0.0/8"]);
        for ip in [IpAddr::V4(random.into()), special] {
            let IpAddr::V4(v4) = ip else { continue };
            if policy.check_addr(None, ip).is_err() {
                for carrier in carriers(v4).into_iter().filter(|carrier| *carrier != Ipv6Addr::LOCALHOST) {
                    prop_assert!(policy.check_addr(None, carrier.into()).is_err(), "{} by {}", v4, carrier);
                }
            }
        }
    }

    #[test]
    fn every_spelling_is_the_same_address(random in any::<u32>()) {
        let v4 = Ipv4Addr::from(random);
        for text in spellings(v4) {
            let parsed = parse_literal(&text).map(|ip| ip.to_canonical());
            prop_assert_eq!(parsed, Some(IpAddr::V4(v4)), "{}", &text);
            prop_assert_eq!(
                private().check_literal(&text).is_ok(),
                private().check_addr(None, v4.into()).is_ok(),
                "{}", text
            );
        }
    }

    /// The standard library's predicates as a second opinion.
    #[test]
    fn the_standard_library_agrees(random in any::<u32>()) {
        let ip = Ipv4Addr::from(random);
        let never = ip.is_link_local() || ip.is_multicast() || ip.is_broadcast() || ip.is_documentation()
            || ip.octets()[0] == 0 || ip.octets()[0] >= 240;
        if never {
            prop_assert!(private().check_addr(None, ip.into()).is_err());
        }
        if never || ip.is_private() || ip.is_loopback() {
            prop_assert!(public().check_addr(None, ip.into()).is_err());
        }
    }

    #[test]
    fn no_text_panics(host: String, numeric in "[0-9a-fxX.:%\\[\\]]{0,24}") {
        for host in [host, numeric] {
            drop(private().check_literal(&host));
            drop(Policy::new(Mode::Private, std::slice::from_ref(&host), &[]));
        }
    }
}

#[test]
fn rules() {
    #[track_caller]
    fn check(host: &str, in_private: Option<&str>, in_public: Option<&str>) {
        assert_eq!((rule(&private(), host), rule(&public(), host)), (in_private, in_public), "{host}");
    }
    for open in [
        "8.8.8.8",
        "1.1.1.1",
        "192.0.0.9",
        "[2606:4700::1111]",
        "[64:ff9b::808:808]",
        "example.com",
        "localhost",
    ] {
        check(open, None, None);
    }
    for loopback in
        ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "::1%lo"]
    {
        check(loopback, None, Some("loopback"));
    }
    check("10.1.2.3", None, Some("private-network"));
    check("172.31.255.255", None, Some("private-network"));
    check("172.32.0.0", None, None);
    check("192.168.0.1.", None, Some("private-network"));
    check("100.64.0.1", None, Some("carrier-grade-nat"));
    check("[fd12::1]", None, Some("unique-local"));
    check("[2002:808:808::1]", None, Some("transition"));
    check("[64:ff9b:1::8.8.8.8]", None, Some("transition"));
    check("[64:ff9b:1:808:8:800::]", None, Some("transition"));
    check("[2606:4700::200:5efe:8.8.8.8]", None, None);
    check("[2606:4700::200:5efe:a00:1]", None, Some("private-network"));
    check("[2606:4700::5eff:a00:1]", None, None);
    check("[2606:4700::400:5efe:a00:1]", None, None);
    for metadata in [
        "169.254.169.254",
        "0xa9fea9fe",
        "169.254.170.2",
        "169.254.170.23",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "[fd00:ec2::254]",
        "[fd00:ec2::23]",
        "[fd20:ce::254]",
        "[fd00:c1::a9fe:a9fe]",
        "[fd00:42::42]",
        "[fe80::a9fe:a9fe%eth0]",
        "[::ffff:169.254.169.254]",
        "[::169.254.169.254]",
        "[64:ff9b::169.254.169.254]",
        "[64:ff9b:1::169.254.169.254]",
        "[64:ff9b:1:a9fe:a9:fe00::]",
        "[64:ff9b:1:a9:fe:a9fe::]",
        "[64:ff9b:1:0:a9:fea9:fe00:0]",
        "[2002:a9fe:a9fe::]",
        "[2001:0:808:808::5601:5601]",
        // Behind each length of a local NAT64 prefix, and something else behind that.
        "[64:ff9b:1:a9fe:a9:fe00:808:808]",
        "[64:ff9b:1:8a9:fe:a9fe:808:808]",
        "[64:ff9b:1:808:a9:fea9:fe08:808]",
        "[64:ff9b:1:808:8:808:a9fe:a9fe]",
        // ISATAP.
        "[2606:4700::5efe:a9fe:a9fe]",
        "[2606:4700::200:5efe:169.254.169.254]",
        "[2606:4700::300:5efe:a9fe:a9fe]",
        "[fd12::5efe:a9fe:a9fe]",
    ] {
        check(metadata, Some("cloud-metadata"), Some("cloud-metadata"));
    }
    for (host, rule) in [
        ("169.254.1.1", "link-local"),
        ("[fe80::1]", "link-local"),
        ("0.0.0.0", "unspecified"),
        ("0", "unspecified"),
        ("[::]", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("[ff02::1]", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("250.0.0.1", "reserved"),
        ("192.0.0.1", "reserved"),
        ("198.19.0.1", "benchmarking"),
        ("192.0.2.1", "documentation"),
        ("[2001:db8::1]", "documentation"),
        ("[100::1]", "discard-only"),
        ("[::8.8.8.8]", "reserved"),
        ("[2001:10::1]", "reserved"),
    ] {
        check(host, Some(rule), Some(rule));
    }
}

#[test]
fn what_is_no_literal() {
    for name in [
        "",
        ".",
        "a",
        "1.2.3.4.5",
        "256.1.1.1",
        "1.2.3.256",
        "08.0.0.1",
        "4294967296",
        "1..2",
        "+1",
        "0x+1",
        "1.2.3.4a",
        "[::1",
        "::g",
        "-1",
    ] {
        assert_eq!(parse_literal(name), None, "{name}");
    }
}

#[test]
fn lists() {
    let addr = |text: &str| text.parse::<IpAddr>().unwrap();

    // Allowing beats what is refused by default, one address or one network at a time.
    let allowing =
        policy(Mode::Public, &["169.254.169.254", "10.1.0.0/16", "::1", "*.internal", "Hooks"], &[]);
    assert!(allowing.check_addr(None, addr("169.254.169.254")).is_ok());
    assert!(allowing.check_addr(None, addr("169.254.169.253")).is_err());
    assert!(allowing.check_addr(None, addr("10.1.2.3")).is_ok());
    assert!(allowing.check_addr(None, addr("::ffff:10.1.2.3")).is_ok());
    assert!(allowing.check_addr(None, addr("64:ff9b::10.1.2.3")).is_ok());
    assert!(allowing.check_addr(None, addr("10.2.2.3")).is_err());
    assert!(allowing.check_addr(None, addr("::1")).is_ok());
    assert!(allowing.check_addr(Some("a.b.INTERNAL."), addr("10.9.9.9")).is_ok());
    assert!(allowing.check_addr(Some("internal"), addr("10.9.9.9")).is_err());
    assert!(allowing.check_addr(Some("notinternal"), addr("10.9.9.9")).is_err());
    assert!(allowing.check_addr(Some("hooks"), addr("192.168.1.1")).is_ok());

    // Denying beats everything, whichever of the names and addresses it names.
    let denying = policy(
        Mode::Private,
        &["10.0.0.0/8", "ok.example.com"],
        &["10.1.0.0/16", "*.example.com", "8.8.8.8"],
    );
    assert!(denying.check_addr(None, addr("10.2.0.1")).is_ok());
    assert!(denying.check_addr(None, addr("10.1.0.1")).is_err());
    assert!(denying.check_addr(None, addr("2002:a01:1::")).is_err());
    assert!(denying.check_addr(Some("ok.example.com"), addr("1.1.1.1")).is_err());
    assert!(denying.check_addr(Some("elsewhere.com"), addr("8.8.8.8")).is_err());
    assert_eq!(rule(&denying, "OK.example.com."), Some("egress_deny"));
    assert_eq!(rule(&denying, "example.com"), None);
    assert_eq!(rule(&denying, "[::ffff:8.8.8.8]"), Some("egress_deny"));

    // Names beyond ASCII are the same in both forms; the hosts asked about are in the latter.
    for entry in ["m\u{fc}nchen.example", "M\u{dc}NCHEN.example.", "xn--mnchen-3ya.example", "*.EXAMPLE"] {
        assert_eq!(
            rule(&policy(Mode::Private, &[], &[entry]), "xn--mnchen-3ya.example"),
            Some("egress_deny"),
            "{entry}"
        );
        let allowing = policy(Mode::Public, &[entry], &[]);
        assert!(allowing.check_addr(Some("xn--mnchen-3ya.example"), addr("10.0.0.1")).is_ok(), "{entry}");
    }
    let below = policy(Mode::Private, &[], &["*.m\u{fc}nchen.example"]);
    assert_eq!(rule(&below, "a.xn--mnchen-3ya.example"), Some("egress_deny"));
    assert_eq!(rule(&below, "xn--mnchen-3ya.example"), None);
    // In other digits, an address.
    let digits = policy(Mode::Private, &[], &["\u{ff18}.8.8.8"]);
    assert!(digits.check_addr(None, addr("8.8.8.8")).is_err());

    // A mapped network is the IPv4 network that it maps.
    assert!(policy(Mode::Private, &[], &["::ffff:8.0.0.0/104"]).check_addr(None, addr("8.8.8.8")).is_err());
}

#[test]
fn bad_list_entries() {
    #[track_caller]
    fn check(entry: &str, reason: &str) {
        let error = Policy::new(Mode::Private, &[], &[entry.to_owned()]).unwrap_err();
        assert_eq!((error.setting, error.reason.as_str()), ("egress_deny", reason), "{entry}");
    }
    check("10.0.0.1/8", "the network of that size is 10.0.0.0/8");
    check("10.0.0.0/33", "not a network");
    check("http://example.com", "not a network");
    check("example.com:80", "not an address, and a host name has no port");
    check("1.2.3.4.5", "not a host name");
    check("*", "not a host name");
    check("a.*.b", "not a host name");
    check("", "not a host name");
    check("a..b", "not a host name");
    check("\u{fc}/x", "not a host name: not a domain name by UTS 46, by its characters or their order");
    check("\u{fc}.\u{ff11}", "not a host name");
}

#[test]
fn texts() {
    #[track_caller]
    fn check(policy: &Policy, host: &str, expected: &str) {
        assert_eq!(policy.check_literal(host).unwrap_err().to_string(), expected);
    }
    check(
        &private(),
        "169.254.169.254",
        "169.254.169.254 is a cloud metadata address (rule cloud-metadata); add it to egress_allow to permit it",
    );
    check(
        &private(),
        "[2002:a9fe:a9fe::]",
        "2002:a9fe:a9fe:: stands for 169.254.169.254, which is a cloud metadata address (rule cloud-metadata); \
         add it to egress_allow to permit it",
    );
    check(
        &public(),
        "127.1",
        "endpoint resolves to a loopback address: 127.0.0.1 (rule loopback); set egress to private, or add it to \
         egress_allow, to permit it",
    );
    check(
        &public(),
        "192.168.1.5",
        "192.168.1.5 is a private network's address (rule private-network); set egress to private, or add it to \
         egress_allow, to permit it",
    );
    check(
        &policy(Mode::Private, &[], &["*.example.com"]),
        "a.example.com",
        "a.example.com is denied by `*.example.com` (rule egress_deny); remove that from egress_deny to permit it",
    );
}
