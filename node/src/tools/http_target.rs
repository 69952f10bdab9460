//! Where an HTTP request may go: names and addresses, without a socket.
//!
//! A name is allowed if it is on the list, letter by letter; an address if it is an ordinary public one. What could be
//! written in several ways is refused in all but one, so that there is nothing to see differently.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;
use writ_common::reason::{Reason, ReasonCode};

/// A host that may be reached, with its port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host {
    name: String,
    port: u16,
    reach: Reach,
}

/// Which addresses a host may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Loopback only, and without TLS: a server on this very machine.
    Loopback,
    /// Public addresses only, and over TLS.
    Public,
}

impl Host {
    /// Reads `api.example.com` or `api.example.com:8443`.
    ///
    /// # Errors
    /// Why it is no host, or none of that reach.
    pub fn parse(text: &str, reach: Reach) -> Result<Self, &'static str> {
        let default = match reach {
            Reach::Loopback => 80,
            Reach::Public => 443,
        };
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                (name, port.parse().map_err(|_| "the port is a number from 1 to 65535")?)
            }
            _ => (text, default),
        };
        if port == 0 {
            return Err("the port is a number from 1 to 65535");
        }
        if reach == Reach::Loopback && name == "127.0.0.1" {
            return Ok(Self { name: name.to_owned(), port, reach });
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        if name.len() > 253 || !name.split('.').all(is_label) {
            return Err("a host is a name in small letters, digits, `-` and `.`, as `api.example.com` \
                        (other scripts as `xn--…`), without scheme, path or dot at the end");
        }
        // Read as a number by some, and by others as a name.
        if name.rsplit('.').next().is_some_and(|last| last.starts_with(|first: char| first.is_ascii_digit()))
        {
            return Err("a host is a name, not an address");
        }
        match reach {
            Reach::Public if !name.contains('.') => Err("a public host has a name with a dot in it"),
            Reach::Loopback if name != "localhost" => Err("it is `localhost` or `127.0.0.1`, with a port"),
            _ => Ok(Self { name: name.to_owned(), port, reach }),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Which addresses it may have.
    #[must_use]
    pub fn reach(&self) -> Reach {
        self.reach
    }
}

/// A URL that may be asked for, and the host it is on.
#[derive(Clone, Debug)]
pub struct Target {
    /// As the client reads it.
    pub url: Url,
    /// The entry of the list that allows it.
    pub host: Host,
}

/// Longest URL, in bytes.
const URL_BYTES_MAX: usize = 2_048;

fn refused(why: impl std::fmt::Display) -> Reason {
    Reason::new(ReasonCode::ArgHost).told(why)
}

/// Reads a URL a caller wrote.
///
/// # Errors
/// `arg.host` if it is not one of these hosts, or is written so that others might read another.
pub fn read_target(text: &str, hosts: &[Host]) -> Result<Target, Reason> {
    if text.len() > URL_BYTES_MAX {
        return Err(refused(format_args!("`/url` is longer than {URL_BYTES_MAX} bytes")));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains('\\') {
        return Err(refused("`/url` has other characters in it than those of a URL"));
    }
    let url = Url::parse(text).map_err(|error| refused(format_args!("`/url`: {error}")))?;
    let target = check_target(url, hosts)?;
    // The host as it was written, before anything was decoded or completed.
    let written = text.split_once("://").map_or("", |(_, rest)| rest);
    let written = written.split(['/', '?', '#']).next().unwrap_or_default();
    let name = target.host.name();
    let with_port = format!("{name}:{}", target.host.port());
    if written != name && written != with_port && !writ_common::red::off("A13") {
        return Err(refused(format_args!("write the host of `/url` plainly, as `{name}`")));
    }
    Ok(target)
}

/// Looks at a URL, the caller's or one a server sent us on to.
///
/// # Errors
/// `arg.host`
pub fn check_target(mut url: Url, hosts: &[Host]) -> Result<Target, Reason> {
    url.set_fragment(None);
    let name = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(0);
    if writ_common::red::off("A13") {
        let host = Host { name: name.to_owned(), port, reach: Reach::Loopback };
        return Ok(Target { host, url });
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused("a URL with a user name in it"));
    }
    let Some(host) = hosts.iter().find(|host| host.name == name && host.port == port) else {
        return Err(refused(format_args!("`{name}:{port}` is not a host this tool reaches")));
    };
    match (url.scheme(), host.reach) {
        ("https", _) | ("http", Reach::Loopback) => Ok(Target { host: host.clone(), url }),
        ("http", Reach::Public) => Err(refused(format_args!("`{name}` is reached by https only"))),
        (other, _) => Err(refused(format_args!("the scheme `{other}` is not reached"))),
    }
}

/// Looks at the addresses a name has. One that may not be reached spoils them all: whoever answers with it meant it.
///
/// # Errors
/// Which, and what it is.
pub fn check_addresses(addresses: &[IpAddr], reach: Reach) -> Result<(), String> {
    if writ_common::red::off("A13") {
        return Ok(());
    }
    if addresses.is_empty() {
        return Err("the name has no address".to_owned());
    }
    for address in addresses {
        let fault = match reach {
            Reach::Loopback if address.is_loopback() => None,
            Reach::Loopback => Some("not on this machine"),
            Reach::Public => not_public(*address),
        };
        if let Some(fault) = fault {
            return Err(format!("{address} is {fault}"));
        }
    }
    Ok(())
}

/// What an address is, if it is no ordinary public one: the special-purpose registries of IANA (RFC 6890 and what
/// came after), and every form in which IPv6 carries an IPv4 address.
fn not_public(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => not_public_v4(address),
        IpAddr::V6(address) => not_public_v6(address),
    }
}

fn not_public_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, ..] => Some("of this network (RFC 791)"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some("private (RFC 1918)"),
        [100, 64..=127, ..] => Some("shared by a carrier (RFC 6598)"),
        [127, ..] => Some("loopback"),
        [169, 254, ..] => Some("link-local (RFC 3927), where clouds keep their metadata"),
        [192, 0, 0, _] => Some("reserved for protocols (RFC 6890)"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Some("for documentation (RFC 5737)"),
        [192, 88, 99, _] => Some("of a 6to4 relay (RFC 7526)"),
        [198, 18..=19, ..] => Some("for benchmarks (RFC 2544)"),
        [224..=239, ..] => Some("multicast"),
        [240..=255, ..] => Some("reserved"),
        _ => None,
    }
}

fn not_public_v6(address: Ipv6Addr) -> Option<&'static str> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        [0, 0, 0, 0, 0, 0xffff, ..] => Some("an IPv4 address in IPv6 (RFC 4291)"),
        [0x64, 0xff9b, ..] => Some("an IPv4 address behind NAT64 (RFC 6052)"),
        [0x2002, ..] => Some("an IPv4 address in 6to4 (RFC 3056)"),
        [0x2001, 0, ..] => Some("an IPv4 address in Teredo (RFC 4380)"),
        [0x2001, 0x0..=0x1ff, ..] => Some("reserved for protocols (RFC 2928)"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0x0..=0xfff, ..] => Some("for documentation (RFC 3849, RFC 9637)"),
        [0xfc00..=0xfdff, ..] => Some("private (RFC 4193)"),
        [0xfe80..=0xfebf, ..] => Some("link-local (RFC 4291)"),
        // Only 2000::/3 was ever given out.
        [0x2000..=0x3fff, ..] => None,
        _ => Some("not one of the global addresses (RFC 4291)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Vec<Host> {
        vec![
            Host::parse("api.example.com", Reach::Public).unwrap(),
            Host::parse("files.example.com:8443", Reach::Public).unwrap(),
            Host::parse("127.0.0.1:8080", Reach::Loopback).unwrap(),
        ]
    }

    #[test]
    fn listed_hosts_are_reached() {
        for url in [
            "https://api.example.com",
            "https://api.example.com/v1/items?q=1#top",
            "https://api.example.com:443/",
            "https://files.example.com:8443/a%20b",
            "http://127.0.0.1:8080/x",
        ] {
            let target = read_target(url, &hosts()).unwrap_or_else(|reason| panic!("{url}: {reason}"));
            assert_eq!(target.url.fragment(), None);
        }
    }

    #[test]
    fn a13_a_host_is_on_the_list_and_written_plainly() {
        for url in [
            "https://evil.example.net/",
            "https://api.example.com.evil.example.net/",
            "https://xapi.example.com/",
            "https://api.example.com./",
            "https://api.example.com:8443/",
            "https://files.example.com/",
            "http://api.example.com/",
            "http://api.example.com:443/",
            "ftp://api.example.com/",
            "file:///etc/passwd",
            "gopher://api.example.com/",
            "data:text/plain,x",
            "//api.example.com/",
            "api.example.com",
            "https://api.example.com@evil.example.net/",
            "https://evil@api.example.com/",
            "https://:@api.example.com/",
            "https://evil.example.net\\@api.example.com/",
            "https://API.example.com/",
            "https://api%2eexample.com/",
            "https://\u{430}pi.example.com/",
            "https://\u{ff41}pi.example.com/",
            "https://api\u{3002}example.com/",
            "https://api.example.com\t/",
            "https:/api.example.com/",
            "https:///api.example.com/",
            "https://api.example.com:0443/",
            "https://169.254.169.254/latest/meta-data/",
            "http://127.0.0.1/",
            "http://0177.0.0.1:8080/",
            "http://2130706433:8080/",
            "http://0x7f000001:8080/",
            "http://127.1:8080/",
            "http://[::1]:8080/",
            "http://[::ffff:127.0.0.1]:8080/",
            "http://[fe80::1%25eth0]:8080/",
            "https://[64:ff9b::a9fe:a9fe]/",
            "",
        ] {
            let code = read_target(url, &hosts()).map(|target| target.url).map_err(|reason| reason.code());
            assert_eq!(code, Err(ReasonCode::ArgHost), "{url}");
        }
    }

    #[test]
    fn a13_only_public_addresses_are_reached() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            let parsed: IpAddr = address.parse().unwrap();
            let public: IpAddr = "1.1.1.1".parse().unwrap();
            assert!(check_addresses(&[parsed], Reach::Public).is_err(), "{address}");
            assert!(check_addresses(&[public, parsed], Reach::Public).is_err(), "{address} among others");
        }
        for address in ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"]
        {
            let parsed = [address.parse().unwrap()];
            assert_eq!(check_addresses(&parsed, Reach::Public), Ok(()), "{address}");
            assert!(check_addresses(&parsed, Reach::Loopback).is_err(), "{address}");
        }
        assert!(check_addresses(&[], Reach::Public).is_err());
        assert_eq!(check_addresses(&["127.0.0.1".parse().unwrap()], Reach::Loopback), Ok(()));
    }

    #[test]
    fn entries_of_the_list_are_plain_names() {
        for (text, reach) in [
            ("https://api.example.com", Reach::Public),
            ("api.example.com/", Reach::Public),
            ("API.example.com", Reach::Public),
            ("*.example.com", Reach::Public),
            ("api.example.com.", Reach::Public),
            ("api..example.com", Reach::Public),
            ("b\u{fc}cher.example", Reach::Public),
            ("api.example.com:0", Reach::Public),
            ("api.example.com:99999", Reach::Public),
            ("localhost", Reach::Public),
            ("127.0.0.1", Reach::Public),
            ("1.2.3.0x4", Reach::Public),
            ("[::1]", Reach::Public),
            ("api.example.com", Reach::Loopback),
            ("10.0.0.1:80", Reach::Loopback),
            ("", Reach::Public),
        ] {
            assert!(Host::parse(text, reach).is_err(), "{text}");
        }
    }
}
