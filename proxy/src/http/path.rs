//! Arithmetic on paths: replacing a matched prefix, and finding paths that a backend could read
//! as another path than the one that was matched. Pure.

use super::matching::hex;

/// What becomes of a request's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathModifier {
    /// The whole path, query excepted.
    Full(Box<str>),
    /// The prefix that the rule matched; the rest stays. Stored without a trailing slash.
    Prefix(Box<str>),
}

impl PathModifier {
    /// The new path. `matched` is the prefix that matched, without a trailing slash.
    ///
    /// The standard's table (HTTPPathModifier): by whole segments, a trailing slash of either
    /// prefix is of no account, and what would be empty is "/".
    pub fn apply(&self, path: &str, matched: &str) -> String {
        let (prefix, rest) = match self {
            Self::Full(full) => (&**full, ""),
            Self::Prefix(prefix) => (&**prefix, path.strip_prefix(matched).unwrap_or(path)),
        };
        let mut new = String::with_capacity(prefix.len() + rest.len() + 1);
        let first = if prefix.is_empty() { rest } else { prefix };
        if !first.starts_with('/') {
            new.push('/');
        }
        new.push_str(prefix);
        new.push_str(rest);
        new
    }
}

/// Whether a path holds a segment `.` or `..`, also when the dots or the separators around them are
/// percent-encoded, or the separators are backslashes. A backend that resolves them would serve
/// another path than the one that was matched, so they are refused where paths are told apart.
pub fn has_dot_segments(path: &str) -> bool {
    // Nearly every path is done after this look.
    if !path.contains("/.") && !path.bytes().any(|byte| matches!(byte, b'%' | b'\\')) {
        return false;
    }
    let bytes = path.as_bytes();
    let (mut at, mut dots, mut length) = (0, 0, 0);
    while let Some(&raw) = bytes.get(at) {
        let byte = match raw {
            b'%' => match bytes.get(at + 1..at + 3).and_then(hex) {
                Some(decoded) => {
                    at += 2;
                    decoded
                }
                None => raw,
            },
            other => other,
        };
        at += 1;
        match byte {
            b'/' | b'\\' => {
                if is_dots(dots, length) {
                    return true;
                }
                (dots, length) = (0, 0);
            }
            b'.' => {
                dots += 1;
                length += 1;
            }
            // "..;x" is ".." to servers that take parameters off a segment.
            b';' if is_dots(dots, length) => return true,
            _ => length += 1,
        }
    }
    is_dots(dots, length)
}

fn is_dots(dots: usize, length: usize) -> bool {
    dots == length && matches!(length, 1 | 2)
}
