//! Durations as the Gateway API writes them (GEP-2257): `1h30m`, `500ms`, `0s`.

/// Most numbers with a unit in one duration.
const MAX_PARTS: usize = 4;
/// Most digits of one number.
const MAX_DIGITS: usize = 5;

/// Reads a duration, in milliseconds. Stricter than Go's `time.ParseDuration`: neither sign nor
/// fraction, no other units than h, m, s and ms, at most four parts of at most five digits.
pub(super) fn milliseconds(text: &str) -> Result<u64, String> {
    let refuse = || format!("`{text}` is no duration; write it like 1h30m, 10s or 500ms");
    let mut rest = text;
    let mut total = 0;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .ok_or_else(refuse)?;
        let (number, tail) = rest.split_at(digits);
        let end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        parts += 1;
        if parts > MAX_PARTS || number.len() > MAX_DIGITS {
            return Err(refuse());
        }
        let number: u64 = number.parse().map_err(|_| refuse())?;
        total += number
            * match unit {
                "h" => 3_600_000,
                "m" => 60_000,
                "s" => 1_000,
                "ms" => 1,
                _ => return Err(refuse()),
            };
        rest = tail;
    }
    if parts == 0 { Err(refuse()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn durations_are_read_as_gep_2257_writes_them() {
        for (text, expected) in [
            ("0s", 0),
            ("10s", 10_000),
            ("500ms", 500),
            ("1h", 3_600_000),
            ("1h30m10s5ms", 5_410_005),
            ("99999ms", 99_999),
            ("1s1s", 2_000),
        ] {
            assert_eq!(milliseconds(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "10",
            "s",
            "1.5s",
            "-1s",
            "+1s",
            "1d",
            "1us",
            "100000s",
            "1h1m1s1ms1s",
            "1 s",
            " 1s",
            "1S",
            "1ss",
            "½s",
            "1s½",
        ] {
            assert!(milliseconds(text).is_err(), "{text}");
        }
    }
}
