//! Client addresses: networks in CIDR form, and who a request really comes from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::HeaderMap;

/// A set of networks.
#[derive(Clone, Debug, Default)]
pub struct Networks(Vec<(IpAddr, u8)>);

impl Networks {
    /// Reads `10.0.0.0/8`, `::1/128`, or a bare address.
    ///
    /// # Errors
    /// What is wrong with which entry.
    pub fn parse(texts: &[String]) -> Result<Self, String> {
        let one = |text: &String| -> Option<(IpAddr, u8)> {
            let (address, bits) = match text.split_once('/') {
                Some((address, bits)) => (address.parse::<IpAddr>().ok()?, Some(bits.parse::<u8>().ok()?)),
                None => (text.parse::<IpAddr>().ok()?, None),
            };
            let width = if address.is_ipv4() { 32 } else { 128 };
            Some((address, bits.unwrap_or(width))).filter(|(_, bits)| *bits <= width)
        };
        let networks = texts.iter().map(|text| one(text).ok_or_else(|| format!("{text:?} is not a network")));
        networks.collect::<Result<_, _>>().map(Self)
    }

    /// Whether an address is in one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|(network, bits)| prefix(*network, *bits) == prefix(address, *bits))
    }
}

fn prefix(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(u32::from(32 - bits.min(32))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(u32::from(128 - bits.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
    }
}

/// What an address is limited by: itself, or for IPv6 its /64, which is what one subscriber has.
#[must_use]
pub fn limit_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        v6 @ IpAddr::V6(_) => prefix(v6, 64),
    }
}

/// Who a request comes from: the peer, or, when that is a trusted proxy, the last address in `X-Forwarded-For` that is
/// not one.
#[must_use]
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &Networks) -> IpAddr {
    let peer = peer.to_canonical();
    if !trusted.contains(peer) {
        return peer;
    }
    let forwarded = headers.get_all("x-forwarded-for").iter().map(|value| value.to_str().unwrap_or_default());
    let hops: Vec<&str> = forwarded.flat_map(|value| value.split(',')).collect();
    let mut client = peer;
    // From the nearest on: what stands left of a hop that is none of ours, or that is no address, is anybody's claim.
    for hop in hops.into_iter().rev() {
        let Some(address) = hop_address(hop.trim()) else { break };
        client = address;
        if !trusted.contains(client) {
            break;
        }
    }
    client
}

/// An address as proxies write it: alone, or with a port.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let alone = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(hop);
    let address = alone.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|socket| socket.ip()))?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_contain_their_addresses() {
        let networks = Networks::parse(&["10.0.0.0/8".into(), "::1/128".into(), "192.0.2.7".into()]).unwrap();
        for (address, inside) in
            [("10.255.0.1", true), ("11.0.0.1", false), ("::1", true), ("::2", false), ("192.0.2.7", true)]
        {
            assert_eq!(networks.contains(ip(address)), inside, "{address}");
        }
        assert!(Networks::parse(&["0.0.0.0/0".into()]).unwrap().contains(ip("8.8.8.8")));
        for bad in ["", "10.0.0.0/33", "x/8", "::/129", "1.2.3"] {
            assert!(Networks::parse(&[bad.into()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted = Networks::parse(&["10.0.0.0/8".into()]).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "6.6.6.6, 203.0.113.9, 10.0.0.2".parse().unwrap());
        assert_eq!(client_address(ip("10.0.0.1"), &headers, &trusted), ip("203.0.113.9"));
        assert_eq!(client_address(ip("198.51.100.1"), &headers, &trusted), ip("198.51.100.1"));
        assert_eq!(client_address(ip("10.0.0.1"), &HeaderMap::new(), &trusted), ip("10.0.0.1"));
        assert_eq!(client_address(ip("::ffff:10.0.0.1"), &headers, &trusted), ip("203.0.113.9"));
        for (forwarded, client) in [
            ("6.6.6.6, 203.0.113.9:5555", "203.0.113.9"),
            ("6.6.6.6, [2001:db8::1]:5555, 10.0.0.2", "2001:db8::1"),
            ("6.6.6.6, [2001:db8::1]", "2001:db8::1"),
            ("6.6.6.6, unknown", "10.0.0.1"),
            ("6.6.6.6, unknown, 10.0.0.2", "10.0.0.2"),
            ("", "10.0.0.1"),
        ] {
            headers.insert("x-forwarded-for", forwarded.parse().unwrap());
            assert_eq!(client_address(ip("10.0.0.1"), &headers, &trusted), ip(client), "{forwarded}");
        }
    }

    #[test]
    fn one_ipv6_subscriber_is_one_key() {
        assert_eq!(limit_key(ip("2001:db8::1")), limit_key(ip("2001:db8::ffff")));
        assert_ne!(limit_key(ip("2001:db8::1")), limit_key(ip("2001:db8:0:1::1")));
        assert_eq!(limit_key(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
    }
}
