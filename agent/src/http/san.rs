//! The subject alternative names of a certificate, for `client_allowed_sans`.
//!
//! The certificate has already been verified, so what is not understood here can be skipped: it
//! matches nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const SEQUENCE: u8 = 0x30;
const BOOLEAN: u8 = 0x01;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
/// In a certificate's body: `[3] EXPLICIT`.
const EXTENSIONS: u8 = 0xa3;
/// 2.5.29.17
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
// In a general name, all IMPLICIT.
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const IP: u8 = 0x87;

/// DNS names, email addresses, URIs and IP addresses, as text.
pub(super) fn subject_alt_names(certificate: &[u8]) -> Vec<String> {
    general_names(certificate).map_or_else(Vec::new, |names| {
        Elements(names).filter_map(|(tag, value)| name(tag, value)).collect()
    })
}

fn general_names(certificate: &[u8]) -> Option<&[u8]> {
    let inside = |tag, bytes| Elements(bytes).find(|(found, _)| *found == tag).map(|(_, v)| v);
    // The first sequence in a certificate is its body.
    let body = inside(SEQUENCE, inside(SEQUENCE, certificate)?)?;
    let extensions = inside(SEQUENCE, inside(EXTENSIONS, body)?)?;
    let extension = Elements(extensions).find_map(|(_, extension)| {
        let mut parts = Elements(extension);
        let is_wanted = parts.next() == Some((OBJECT_ID, SUBJECT_ALT_NAME));
        is_wanted.then(|| parts.find(|(tag, _)| *tag != BOOLEAN)).flatten()
    });
    match extension? {
        (OCTET_STRING, value) => inside(SEQUENCE, value),
        _ => None,
    }
}

fn name(tag: u8, value: &[u8]) -> Option<String> {
    match tag {
        EMAIL | DNS | URI => {
            let text = str::from_utf8(value).ok()?;
            text.is_ascii().then(|| text.to_owned())
        }
        IP => {
            let address = match value.len() {
                4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?)),
                _ => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?)),
            };
            Some(address.to_canonical().to_string())
        }
        _ => None,
    }
}

/// DER elements one after the other, until one is not understood.
struct Elements<'a>(&'a [u8]);

impl<'a> Iterator for Elements<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if first & 0x80 != 0 {
            let (digits, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if digits.len() > 3 {
                return None;
            }
            length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
            rest = after;
        }
        let (value, after) = rest.split_at_checked(length)?;
        self.0 = after;
        Some((tag, value))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certificate(names: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn all_kinds_of_names() {
        let long = "a".repeat(300);
        let der = certificate(vec![
            SanType::DnsName("prometheus.example".try_into().unwrap()),
            SanType::Rfc822Name("sre@example".try_into().unwrap()),
            SanType::URI("spiffe://cluster/ns/monitoring".try_into().unwrap()),
            SanType::IpAddress("10.0.0.9".parse().unwrap()),
            SanType::IpAddress("fd00::9".parse().unwrap()),
            SanType::DnsName(long.as_str().try_into().unwrap()),
        ]);
        let expected = [
            "prometheus.example",
            "sre@example",
            "spiffe://cluster/ns/monitoring",
            "10.0.0.9",
            "fd00::9",
            &long,
        ];
        assert_eq!(subject_alt_names(&der), expected);
    }

    #[test]
    fn no_names_and_no_certificate() {
        assert!(subject_alt_names(&certificate(Vec::new())).is_empty());
        let der = certificate(vec![SanType::DnsName("a".try_into().unwrap())]);
        for end in 0..der.len() {
            // Cut short anywhere: the outermost length no longer holds.
            assert!(subject_alt_names(&der[..end]).is_empty(), "{end}");
        }
        for nonsense in [&[][..], &[0x30], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &[0xff; 64]] {
            assert!(subject_alt_names(nonsense).is_empty(), "{nonsense:?}");
        }
    }
}
