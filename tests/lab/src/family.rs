//! The families in which a test runs: one test function that takes a [`Family`] becomes a test for
//! each that is named, with [`in_families!`](crate::in_families).

/// What the nodes, pods and Services of a lab have addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 alone.
    Ipv4,
    /// IPv6 alone: no IPv4 beyond loopback.
    Ipv6,
    /// Both; IPv4 is the first.
    Dual,
}

impl Family {
    /// As `--ip-family` takes it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Dual => "dual",
        }
    }

    /// Whether this is the family in which a long test runs in full; in the others it makes do
    /// with less.
    pub fn is_in_full(self) -> bool {
        self == Self::Ipv4
    }
}

/// Makes tests `NAME::ipv4`, `NAME::ipv6`, `NAME::dual` of functions that take a
/// [`Family`](crate::Family):
///
/// ```
/// use weft_lab_tests::{Family, in_families};
///
/// in_families!(the_flag_is_known: ipv4, ipv6, dual);
///
/// fn the_flag_is_known(family: Family) {
///     assert!(!family.flag().is_empty());
/// }
/// ```
#[macro_export]
macro_rules! in_families {
    (@ipv4) => { $crate::Family::Ipv4 };
    (@ipv6) => { $crate::Family::Ipv6 };
    (@dual) => { $crate::Family::Dual };
    ($($name:ident: $($family:ident),+);+ $(;)?) => {$(
        mod $name {
            $(
                #[test]
                fn $family() {
                    super::$name($crate::in_families!(@$family));
                }
            )+
        }
    )+};
}
