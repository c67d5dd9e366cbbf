//! What a client's first bytes say. In flow bytes that were read so far; out flows a verdict, or
//! the wish for more. Pure.
//!
//! Only undeclared ports that a route for all ports reaches are sniffed for HTTP; a client that
//! says something else, or nothing in time, is taken for TCP, and counted. TLS clients are read
//! up to their ClientHello, for its server name, and never terminated.

use rustls::server::Acceptor;

/// HTTP/2 with prior knowledge starts with it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Methods of RFC 9110 and PATCH. A client with a method of its own is taken for TCP: declare the
/// port, and nothing is guessed.
const METHODS: [&[u8]; 9] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"CONNECT ",
    b"OPTIONS ",
    b"TRACE ",
    b"PATCH ",
];

/// Read at most for a ClientHello: post-quantum key shares take 1.3 KiB; TLS allows 16 KiB and
/// more, which only attackers use.
pub const LARGEST_HELLO: usize = 16 * 1024;

/// What the bytes so far look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// HTTP/1 or HTTP/2.
    Http,
    /// Something else.
    Other,
    /// Too few bytes to say.
    More,
}

/// Whether a connection that starts with `bytes` is HTTP.
pub fn http(bytes: &[u8]) -> Verdict {
    let starts = std::iter::once(PREFACE).chain(METHODS);
    let mut verdict = Verdict::Other;
    for start in starts {
        if bytes.starts_with(start) {
            return Verdict::Http;
        }
        if start.starts_with(bytes) {
            verdict = Verdict::More;
        }
    }
    verdict
}

/// What is known of a ClientHello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// It is complete: the server name, if it has one, in lower case.
    Complete(Option<String>),
    /// It is no ClientHello.
    Invalid,
    /// Too few bytes to say.
    More,
}

/// The server name of the ClientHello that `bytes` start with.
pub fn client_hello(bytes: &[u8]) -> Hello {
    // Parsed anew with each piece that arrives; usually there is one.
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return Hello::Invalid;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_lowercase);
                return Hello::Complete(name);
            }
            Ok(None) => {}
            Err(_) => return Hello::Invalid,
        }
    }
    if bytes.len() >= LARGEST_HELLO {
        Hello::Invalid
    } else {
        Hello::More
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    #[test]
    fn http_is_known_by_its_method_or_preface_and_waits_while_undecided() {
        for (bytes, verdict) in [
            (&b""[..], Verdict::More),
            (b"G", Verdict::More),
            (b"GET", Verdict::More),
            (b"GET ", Verdict::Http),
            (b"GET / HTTP/1.1\r\n", Verdict::Http),
            (b"GETX", Verdict::Other),
            (b"get / ", Verdict::Other),
            (b"P", Verdict::More),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Verdict::Http),
            (b"PRI * HTTP/2.0\r\n\r\nSX", Verdict::Other),
            (b"\x16\x03\x01", Verdict::Other),
            (b"SSH-2.0-", Verdict::Other),
            (b"*1\r\n$4\r\nPING\r\n", Verdict::Other),
        ] {
            assert_eq!(http(bytes), verdict, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    fn hello(name: &'static str) -> Vec<u8> {
        weft_certs::tls::install_crypto_provider();
        let config = ClientConfig::builder()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = name.try_into().expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("a vector takes it");
        bytes
    }

    #[test]
    fn the_server_name_is_found_once_the_hello_is_complete() {
        let bytes = hello("Shop.Example.com");
        for cut in 0..bytes.len() {
            assert_eq!(client_hello(&bytes[..cut]), Hello::More, "after {cut}");
        }
        let name = Some("shop.example.com".to_owned());
        assert_eq!(client_hello(&bytes), Hello::Complete(name));
    }

    #[test]
    fn a_hello_to_an_address_has_no_name() {
        assert_eq!(client_hello(&hello("10.0.0.1")), Hello::Complete(None));
    }

    #[test]
    fn what_is_not_tls_is_no_hello() {
        assert_eq!(
            client_hello(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
            Hello::Invalid
        );
    }
}
