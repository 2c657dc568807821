//! The address to serve: resolved at the start, and bound.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::net::{TcpListener, lookup_host};

use crate::config::ListenAddress;

/// The addresses that may be served, in the order in which they are tried: IPv4 first.
///
/// # Errors
/// If the host name cannot be resolved.
pub(super) async fn resolve(listen: &ListenAddress) -> io::Result<Vec<SocketAddr>> {
    match listen {
        ListenAddress::Ip(address) => Ok(vec![*address]),
        // An IPv6 socket for all interfaces serves IPv4 as well, on hosts that have both.
        ListenAddress::All(port) => {
            Ok(vec![(Ipv6Addr::UNSPECIFIED, *port).into(), (Ipv4Addr::UNSPECIFIED, *port).into()])
        }
        ListenAddress::Name(name, port) => {
            let mut addresses: Vec<_> = lookup_host((name.as_str(), *port)).await?.collect();
            addresses.sort_by_key(SocketAddr::is_ipv6);
            Ok(addresses)
        }
    }
}

/// Binds the first of the addresses that this host has.
///
/// # Errors
/// If none of them can be bound, or the one that this host has: another process may serve it.
pub(super) async fn bind(addresses: &[SocketAddr]) -> io::Result<TcpListener> {
    let mut missing = io::Error::new(ErrorKind::AddrNotAvailable, "the name has no address");
    for address in addresses {
        match TcpListener::bind(address).await {
            Err(e) if is_missing(&e) => missing = e,
            bound => return bound,
        }
    }
    Err(missing)
}

/// Whether the host does not have the address, or no address of its family.
fn is_missing(e: &io::Error) -> bool {
    let family = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    e.kind() == ErrorKind::AddrNotAvailable || e.raw_os_error() == Some(family)
}
