//! `X-Forwarded-For` and RFC 7239 `Forwarded` lists, walked from the right.
//!
//! The right end of a list is what our own proxies wrote; whoever stands further left may have written anything. So the
//! walk starts there, hands out one element at a time, and whoever walks stops where the answer is decided. Splitting
//! from the left would be simpler, but then a quote that a client left open could swallow the element that the proxy
//! appended. No byte is looked at more than a few times, whatever the list holds.
//!
//! ```
//! use idleguard_core::client_ip::{address::parse_address, forwarded::forwarded};
//! let list = b"for=\"192.0.2.66, for=203.0.113.5;proto=https";
//! assert_eq!(forwarded(list).next(), Some(parse_address(b"203.0.113.5")));
//! ```

use std::borrow::Cow;
use std::net::IpAddr;

use super::address::{parse_address, parse_node, trim_blanks};
use crate::header_map::Few;

/// The occurrences of a header, in order of arrival, as one list (RFC 9110 §5.3). Blank ones count as absent; `None`: there is
/// no other.
pub fn joined<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<Cow<'a, [u8]>> {
    let lines: Few<&[u8]> = lines.filter(|line| !is_blank(line)).collect();
    match lines.as_slice() {
        [] => None,
        [line] => Some(Cow::Borrowed(*line)), // Envoy joins `x-forwarded-for` itself
        lines => Some(Cow::Owned(lines.join(&b','))),
    }
}

/// Does the line hold nothing but spaces and tabs?
pub fn is_blank(line: &[u8]) -> bool {
    trim_blanks(line).is_empty()
}

/// The elements of an `x-forwarded-for` list, right-most first; `None` is one that is no address.
pub fn x_forwarded_for(list: &[u8]) -> impl Iterator<Item = Option<IpAddr>> {
    list.rsplit(|byte| *byte == b',').map(parse_address)
}

/// The elements of a `forwarded` list (RFC 7239 §4), right-most first; `None` is one whose `for` is no address, is missing, or
/// is there twice, and one with a quote or a backslash in the wrong place.
///
/// ```text
/// list      = element *( "," element )
/// element   = [ parameter ] *( ";" [ parameter ] )
/// parameter = name [ "=" value ]
/// ```
///
/// Where a comma or semicolon stands between a pair of quotes, it separates nothing. Pairs are made from the right; a
/// quote behind an odd number of backslashes is escaped and counts for nothing, nor does one without a partner.
pub fn forwarded(list: &[u8]) -> impl Iterator<Item = Option<IpAddr>> {
    let mut rest = Some(list);
    std::iter::from_fn(move || {
        let (element, before) = last_element(rest?);
        rest = before;
        Some(element)
    })
}

/// The right-most element, and what stands left of its comma, if there is one.
fn last_element(list: &[u8]) -> (Option<IpAddr>, Option<&[u8]>) {
    let mut is_sound = true;
    let mut found = For::Missing;
    let (mut rest, mut end) = (list, list);
    let before = loop {
        match rest.split_last() {
            Some((b'"', before)) if !is_escaped(before) => match before_last_quote(before) {
                Some(before_pair) => rest = before_pair,
                None => {
                    // It has no partner, nor is there any other quote further left that isn't escaped.
                    is_sound = false;
                    rest = before;
                }
            },
            Some((separator @ (b',' | b';'), before)) => {
                found = found.and(end.get(rest.len()..).unwrap_or_default(), &mut is_sound);
                (rest, end) = (before, before);
                if *separator == b',' {
                    break Some(before);
                }
            }
            Some((_, before)) => rest = before,
            None => {
                found = found.and(end, &mut is_sound);
                break None;
            }
        }
    };
    let address = match found {
        For::Once(address) => address.filter(|_| is_sound),
        For::Missing | For::Repeated => None,
    };
    (address, before)
}

/// What the parameters of one element say about its `for`.
enum For {
    Missing,
    Once(Option<IpAddr>),
    Repeated,
}

impl For {
    /// With one parameter more.
    fn and(self, parameter: &[u8], is_sound: &mut bool) -> Self {
        let parameter = trim_blanks(parameter);
        *is_sound &= has_sound_value(parameter);
        match (for_value(parameter), self) {
            (None, found) => found,
            (Some(value), Self::Missing) => Self::Once(for_address(value)),
            (Some(_), Self::Once(_) | Self::Repeated) => Self::Repeated,
        }
    }
}

/// Whether quotes and backslashes are those of one quoted string, which is the whole value: of anything else it depends on who
/// reads it where the value ends. (Pairs of backslashes before it escape nothing to anybody.) Otherwise a value may be sloppy: no
/// token, or missing.
fn has_sound_value(parameter: &[u8]) -> bool {
    let Some(at) = parameter.iter().position(|byte| matches!(byte, b'"' | b'\\')) else { return true };
    let Some((name, mut value)) = parameter.split_at_checked(at) else { return false };
    while let [b'\\', b'\\', rest @ ..] = value {
        value = rest;
    }
    let is_name = |name: &[u8]| !name.contains(&b'=');
    trim_blanks(name).strip_suffix(b"=").is_some_and(is_name) && unquoted(value).is_some()
}

/// The value, if the parameter's name is `for`, in any case (RFC 7239 §4); no blank may stand before the `=`.
fn for_value(parameter: &[u8]) -> Option<&[u8]> {
    match parameter {
        [b'f' | b'F', b'o' | b'O', b'r' | b'R', b'=', value @ ..] => Some(trim_blanks(value)),
        _ => None,
    }
}

/// The address in the value of a `for`.
fn for_address(value: &[u8]) -> Option<IpAddr> {
    if value.starts_with(b"\"") { parse_node(&unquoted(value)?) } else { parse_node(value) }
}

/// The content of a text that is one quoted string (RFC 9110 §5.6.4).
fn unquoted(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let [b'"', quoted @ .., b'"'] = value else { return None };
    if !quoted.iter().any(|byte| matches!(byte, b'"' | b'\\')) {
        return Some(Cow::Borrowed(quoted));
    }
    let mut content = Vec::with_capacity(quoted.len());
    let mut bytes = quoted.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return None,
            b'\\' => content.push(*bytes.next()?),
            _ => content.push(*byte),
        }
    }
    Some(Cow::Owned(content))
}

/// Would a quote behind `before` be escaped (`quoted-pair`, RFC 9110 §5.6.4)?
fn is_escaped(before: &[u8]) -> bool {
    before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// What stands before the last quote that isn't escaped.
fn before_last_quote(mut text: &[u8]) -> Option<&[u8]> {
    loop {
        let at = text.iter().rposition(|byte| *byte == b'"')?;
        text = text.get(..at)?;
        if !is_escaped(text) {
            return Some(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client_ip::address::canonical;

    fn texts(elements: impl Iterator<Item = Option<IpAddr>>) -> Vec<String> {
        elements.map(|element| element.map_or("-".into(), canonical)).collect()
    }

    fn read(lines: &[&str]) -> Vec<String> {
        let list = joined(lines.iter().map(|line| line.as_bytes()));
        list.map(|list| texts(forwarded(&list))).unwrap_or_default()
    }

    fn read_x(lines: &[&[u8]]) -> Vec<String> {
        let list = joined(lines.iter().copied());
        list.map(|list| texts(x_forwarded_for(&list))).unwrap_or_default()
    }

    #[test]
    fn a_list_is_read_from_the_right_over_all_its_lines() {
        let lines: [&[u8]; 4] = [b"192.0.2.1, 192.0.2.2", b" \t", b",192.0.2.3:80", b"x , [::1]"];
        let walked = read_x(&lines);
        assert_eq!(walked, ["::1", "-", "192.0.2.3", "-", "192.0.2.2", "192.0.2.1"]);
        let walked =
            read(&["for=192.0.2.1, for=192.0.2.2", "", "proto=http,for=\"192.0.2.3:80\"", "for=x , for=\"[::1]\""]);
        assert_eq!(walked, ["::1", "-", "192.0.2.3", "-", "192.0.2.2", "192.0.2.1"]);
    }

    #[test]
    fn blank_lines_are_no_elements_and_commas_alone_are_empty_ones() {
        assert_eq!(read(&["", " ", "\t"]), Vec::<String>::new());
        assert_eq!(read(&[","]), ["-", "-"]);
        assert_eq!(read(&[", for=192.0.2.1 ,"]), ["-", "192.0.2.1", "-"]);
        assert_eq!(read_x(&[b","]), ["-", "-"]);
        assert_eq!(read_x(&[b"", b" \t"]), Vec::<String>::new());
    }

    #[test]
    fn only_for_counts_and_only_once() {
        for (element, node) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("FoR=192.0.2.1", "192.0.2.1"),
            ("by=192.0.2.9;for=192.0.2.1;host=h", "192.0.2.1"),
            ("; for= 192.0.2.1 ;", "192.0.2.1"),
            ("for=\"192.0.2.1:_x\"", "192.0.2.1"),
            ("for=\" 192.0.2.1 \"", "192.0.2.1"),
            ("for=192.0.2.1;for=192.0.2.1", "-"),
            ("for=x;for=192.0.2.1;for=x", "-"),
            ("for;for =192.0.2.1", "-"),
            ("for", "-"),
            ("for=", "-"),
            ("for=\"\"", "-"),
            ("192.0.2.1", "-"),
        ] {
            assert_eq!(read(&[element]), [node], "{element}");
        }
    }

    #[test]
    fn a_value_is_one_quoted_string_or_has_no_quote() {
        for (value, node) in [
            (r#""192.0.2.1""#, "192.0.2.1"),
            (r#""\192.\0.2.\1""#, "192.0.2.1"),
            (r#""192.0.2.1"#, "-"),
            (r#"192.0.2.1""#, "-"),
            (r#""192.0.2.1"x"#, "-"),
            (r#"x"192.0.2.1""#, "-"),
            (r#""192.0.2.1""192.0.2.1""#, "-"),
            (r#""192.0.2.1\""#, "-"),
            (r#""192.0.2.1\\""#, "-"),
            (r#"\"192.0.2.1\""#, "-"),
            (r#"192.0.2.\1"#, "-"),
            (r#"""#, "-"),
            (r#""\""#, "-"),
        ] {
            assert_eq!(read(&[&format!("for={value}")]), [node], "{value}");
        }
    }

    #[test]
    fn separators_in_quotes_separate_nothing() {
        assert_eq!(read(&[r#"for=192.0.2.1;host="a,b;for=192.0.2.2""#]), ["192.0.2.1"]);
        assert_eq!(read(&[r#"for=192.0.2.1;host="a\",for=\"b", for=192.0.2.2"#]), ["192.0.2.2", "192.0.2.1"]);
        assert_eq!(read(&[r#"for=192.0.2.1;host="a\\",for=192.0.2.2"#]), ["192.0.2.2", "192.0.2.1"]);
    }

    #[test]
    fn a_quote_without_partner_spoils_its_own_element() {
        assert_eq!(read(&[r#"for="192.0.2.1, for=192.0.2.2"#]), ["192.0.2.2", "-"]);
        assert_eq!(read(&[r#"for=192.0.2.1, host=";for=192.0.2.2"#]), ["-", "192.0.2.1"]);
        assert_eq!(read(&[r#"for=192.0.2.1;host=""#, r#"for=192.0.2.2"#]), ["192.0.2.2", "-"]);
    }

    #[test]
    fn a_quote_or_a_backslash_belongs_to_a_quoted_string_that_is_the_whole_value() {
        for (parameter, is_sound) in [
            (r#"x="a b""#, true),
            (r#"x= "a\\\"b" "#, true),
            (r#"x=\\\\"a b""#, true), // pairs before it escape nothing
            (r#"secure"#, true),
            (r#"host="#, true),
            (r#"path=/a=b"#, true),
            (r#"x="a b"c"#, false),
            (r#"x=c"a b""#, false),
            (r#"x="a""b""#, false),
            (r#""a b""#, false),
            (r#"x="a"="b""#, false),
            (r#"x=a="b""#, false),
            (r#"x=""#, false),
            (r#"x=\"a"#, false),
            (r#"x=a\b"#, false),
            (r#"x=a\\b"#, false),
            (r#"x=\\"#, false),
            (r#"x=\\\"a b""#, false),
            (r#"\x=a"#, false),
        ] {
            let expected = if is_sound { "192.0.2.1" } else { "-" };
            for element in [format!("for=192.0.2.1;{parameter}"), format!("{parameter};for=192.0.2.1")] {
                assert_eq!(read(&[&element]).first().unwrap(), expected, "{element}");
            }
        }
    }

    #[test]
    fn a_pair_of_quotes_may_span_lines() {
        assert_eq!(
            read(&[r#"for=192.0.2.1;host="a"#, "", r#"b";proto=http, for=192.0.2.2"#]),
            ["192.0.2.2", "192.0.2.1"]
        );
        assert_eq!(
            read(&["for=192.0.2.1", r#"for="192.0.2.2"#, "x", r#"",for=192.0.2.3"#]),
            ["192.0.2.3", "-", "192.0.2.1"]
        );
        // The pair is made from the right, so the value goes on behind what looks like its closing quote.
        assert_eq!(read(&[r#"for="192.0.2.1""#, r#"x""#]), ["-"]);
        // Across the lines the second `for` is still a second one.
        assert_eq!(read(&[r#"for=192.0.2.1;for="192.0.2.2"#, r#"";x=y"#]), ["-"]);
    }
}
