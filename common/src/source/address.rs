//! Mailboxes, hosts and URLs.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A mailbox (RFC 5321, section 4.1.2, `Dot-string` and `Domain` only), both parts in lower case.
pub(super) fn email(value: &str) -> Option<String> {
    let (local, host) = value.split_once('@')?;
    let atoms = local.split('.').all(|atom| {
        !atom.is_empty()
            && atom.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~-".contains(&b))
    });
    if !atoms || local.len() > 64 {
        return None;
    }
    let host = domain(host)?;
    Some(format!("{}@{host}", local.to_ascii_lowercase()))
}

/// The host of a canonical mailbox or URL, or the host itself.
pub(super) fn host_of(canonical: &str) -> Option<&str> {
    if let Some((_, rest)) = canonical.split_once("://") {
        let authority = rest.split(['/', '?', '#']).next()?;
        // A port, but not the last group of an IPv6 address.
        let port = authority.rfind(':').filter(|at| authority.rfind(']').is_none_or(|bracket| bracket < *at));
        return port.map_or(Some(authority), |at| authority.get(..at));
    }
    canonical.rsplit('@').next()
}

/// A host: a domain name, or an address in the form everybody reads the same way.
pub(super) fn host(value: &str) -> Option<String> {
    if let Some(address) = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().ok().map(|address| format!("[{address}]"));
    }
    // Whatever ends in a number is an address to some readers (`0x7f.1`, `127.1`, `2130706433`): only one form is safe.
    let last = value.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|b| b.is_ascii_digit()) || last.to_ascii_lowercase().starts_with("0x") {
        return value.parse::<Ipv4Addr>().ok().map(|address| address.to_string());
    }
    domain(value).or_else(|| value.eq_ignore_ascii_case("localhost").then(|| "localhost".to_owned()))
}

/// A domain name of at least two labels, in lower case and Punycode.
fn domain(value: &str) -> Option<String> {
    let value = value.strip_suffix('.').unwrap_or(value);
    let ascii = idna::domain_to_ascii_strict(value).ok()?;
    let (_, top) = ascii.rsplit_once('.')?;
    let named = top.starts_with("xn--") || top.bytes().all(|b| b.is_ascii_alphabetic());
    (named && top.len() >= 2).then_some(ascii)
}

/// A URL (RFC 3986) with an authority; without a scheme it is taken for `https`.
pub(super) fn url(value: &str) -> Option<String> {
    // What one reader drops or turns round, another keeps: backslashes, white space, non-ASCII outside the host.
    if value.contains(['\\', ' ', '<', '>', '"', '^', '`', '{', '|', '}']) {
        return None;
    }
    let (scheme, rest) = match value.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None => ("https".to_owned(), value),
    };
    let mut letters = scheme.bytes();
    if !letters.next()?.is_ascii_lowercase()
        || !letters.all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    {
        return None;
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at_checked(end)?;
    if !tail.is_ascii() || dotted(tail) {
        return None;
    }
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && (!name.starts_with('[') || name.ends_with(']')) => {
            let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
            (name, Some(port.parse::<u16>().ok().filter(|_| digits)?))
        }
        _ => (authority, None),
    };
    // `user@host` shows one host and names another; the domain grammar refuses the `@`.
    let host = host(name)?;
    let usual = match scheme.as_str() {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        "ftp" => Some(21),
        _ => None,
    };
    let port = port.filter(|port| Some(*port) != usual).map(|port| format!(":{port}")).unwrap_or_default();
    let root = if tail.starts_with('/') { "" } else { "/" };
    Some(format!("{scheme}://{host}{port}{root}{tail}"))
}

/// Whether a path has parts that readers resolve: `.`, `..`, also percent-encoded.
fn dotted(tail: &str) -> bool {
    let path = tail.split(['?', '#']).next().unwrap_or_default().to_ascii_lowercase().replace("%2e", ".");
    path.split('/').any(|part| matches!(part, "." | ".."))
}
