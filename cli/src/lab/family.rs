//! IP families: which of them a lab has, and which of those an address or a Service belongs to.
//! Pure.

use std::{fmt, net::IpAddr};

/// An IP family, by its name in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// The family of an address.
    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    /// From the API's `IPv4` and `IPv6`.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|f| f.name() == name)
    }

    /// As the API writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Every address of it.
    pub(crate) fn any(self) -> &'static str {
        match self {
            Self::V4 => "0.0.0.0/0",
            Self::V6 => "::/0",
        }
    }
}

/// `--ip-family`: what the lab's nodes, pods and Services have addresses of.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum IpFamily {
    /// IPv4 alone.
    #[default]
    Ipv4,
    /// IPv6 alone: no IPv4 beyond loopback.
    Ipv6,
    /// Both; the first family, which a Service gets if it does not say, is IPv4.
    Dual,
}

impl IpFamily {
    /// The families, the first of them being the default one.
    pub(crate) fn list(self) -> &'static [Family] {
        match self {
            Self::Ipv4 => &[Family::V4],
            Self::Ipv6 => &[Family::V6],
            Self::Dual => &[Family::V4, Family::V6],
        }
    }
}

impl fmt::Display for IpFamily {
    /// As the flag takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Dual => "dual",
        })
    }
}
