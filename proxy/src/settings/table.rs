//! What a table of settings is made of: a struct with a default, and by name a value as text flows
//! in, a row of documentation flows out. Pure.
//!
//! One table is both the program's defaults and what may be set by name (`--limit NAME=VALUE`), so
//! that whoever else may set them one day (a mesh's configuration, a pod's annotation) says the
//! same names.

/// One setting as documentation shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// By which it is set.
    pub name: &'static str,
    /// Its value, with its unit.
    pub value: String,
    /// What it bounds, and why so.
    pub meaning: String,
}

/// Declares a struct of settings, its default, `set` by name and `rows`.
macro_rules! settings {
    (
        $(#[$outer:meta])*
        pub struct $struct:ident {
            $( $(#[doc = $doc:literal])+ $field:ident($name:literal, $unit:ident): $type:ty = $default:expr; )+
        }
    ) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $struct {
            $( $(#[doc = $doc])+ pub $field: $type, )+
        }

        impl Default for $struct {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        impl $struct {
            /// Sets one by its name; false: there is none of that name here.
            ///
            /// # Errors
            /// The value makes no sense: says what would.
            pub fn set(&mut self, name: &str, value: &str) -> Result<bool, String> {
                match name {
                    $( $name => self.$field = $crate::settings::table::$unit::parse(value)?, )+
                    _ => return Ok(false),
                }
                Ok(true)
            }

            /// All of them, for people.
            pub fn rows(&self) -> Vec<$crate::settings::table::Row> {
                vec![ $( $crate::settings::table::Row {
                    name: $name,
                    value: $crate::settings::table::$unit::show(self.$field),
                    meaning: concat!($($doc),+).trim().to_owned(),
                }, )+ ]
            }
        }
    };
}
pub(crate) use settings;

/// A number of things.
pub(crate) mod count {
    pub(crate) fn parse<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
        let number = text.parse().ok().filter(|number| *number > 0);
        number
            .and_then(|number: u64| T::try_from(number).ok())
            .ok_or_else(|| format!("{text:?} is not a number from 1 on"))
    }

    pub(crate) fn show<T: TryInto<u64>>(value: T) -> String {
        let digits = value.try_into().unwrap_or(u64::MAX).to_string();
        let mut shown = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                shown.push(',');
            }
            shown.push(digit);
        }
        shown
    }
}

/// A size in bytes: `16KiB`, `64MiB`, `1GiB`, or a bare number.
pub(crate) mod bytes {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    /// What one read takes at least; parsers want no less.
    const LEAST: u64 = 16 * 1024;
    /// HTTP/2's largest window (RFC 9113, 6.9.1), and more than any buffer should have.
    const MOST: u64 = (1 << 31) - 1;

    pub(crate) fn parse<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
            .unwrap_or((text, 1));
        let size = digits
            .parse()
            .ok()
            .and_then(|number: u64| number.checked_mul(unit))
            .filter(|size| (LEAST..=MOST).contains(size));
        size.and_then(|size| T::try_from(size).ok()).ok_or_else(|| {
            format!("{text:?} is not a size such as 64KiB or 256MiB, from 16KiB to below 2GiB")
        })
    }

    pub(crate) fn show<T: TryInto<u64>>(value: T) -> String {
        let size = value.try_into().unwrap_or(u64::MAX);
        UNITS
            .iter()
            .find(|(_, unit)| size.is_multiple_of(*unit))
            .map_or_else(
                || size.to_string(),
                |(name, unit)| format!("{} {name}", size / unit),
            )
    }
}

/// A time: `500ms`, `30s`, `5m`; a bare number is seconds.
pub(crate) mod time {
    use std::time::Duration;

    pub(crate) fn parse(text: &str) -> Result<Duration, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: u64 = digits
            .parse()
            .map_err(|_| format!("{text:?} is not a time such as 500ms, 30s or 5m"))?;
        let time = match &text[digits.len()..] {
            "ms" => Duration::from_millis(number),
            "" | "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.saturating_mul(60)),
            unit => return Err(format!("{unit:?} is not one of ms, s, m")),
        };
        // Timers of longer than a day and of nothing mean that somebody mistook the unit.
        let sane = Duration::from_millis(1)..=Duration::from_secs(24 * 3600);
        if sane.contains(&time) {
            Ok(time)
        } else {
            Err(format!("{text:?} is not between 1ms and a day"))
        }
    }

    pub(crate) fn show(value: Duration) -> String {
        match value.subsec_millis() {
            0 => format!("{} s", value.as_secs()),
            _ => format!("{} ms", value.as_millis()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{bytes, count, time};

    #[test]
    fn sizes_have_a_unit_and_sane_bounds() {
        for (text, expected) in [
            ("16KiB", Some(16 * 1024)),
            ("256MiB", Some(256 << 20)),
            ("1GiB", Some(1 << 30)),
            ("65535", Some(65_535)),
            ("15KiB", None),
            ("2GiB", None),
            ("18446744073709551615KiB", None),
            ("64KB", None),
            ("", None),
        ] {
            assert_eq!(bytes::parse::<usize>(text).ok(), expected, "{text:?}");
        }
        assert_eq!(bytes::show(65_536u32), "64 KiB");
        assert_eq!(bytes::show(65_535u32), "65535");
    }

    #[test]
    fn counts_begin_with_one_and_are_shown_in_thousands() {
        for (text, expected) in [
            ("1", Some(1)),
            ("10000", Some(10_000)),
            ("0", None),
            ("-1", None),
        ] {
            assert_eq!(count::parse::<u32>(text).ok(), expected, "{text:?}");
        }
        assert_eq!(count::show(7usize), "7");
        assert_eq!(count::show(10_000usize), "10,000");
        assert_eq!(count::show(1_234_567usize), "1,234,567");
    }

    #[test]
    fn times_have_a_unit_and_sane_bounds() {
        for (text, expected) in [
            ("500ms", Some(500)),
            ("7", Some(7_000)),
            ("2m", Some(120_000)),
            ("0s", None),
            ("1000000m", None),
            ("2h", None),
            ("", None),
        ] {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(time::parse(text).ok(), expected, "{text:?}");
        }
        assert_eq!(time::show(Duration::from_millis(1500)), "1500 ms");
        assert_eq!(time::show(Duration::from_secs(300)), "300 s");
    }
}
