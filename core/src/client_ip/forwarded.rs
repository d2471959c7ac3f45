//! `X-Forwarded-For` and RFC 7239 `Forwarded` lists, walked from the right.
//!
//! The right end of a list is what our own proxies wrote; whoever stands further left may have written anything. So the
//! walk starts there, hands out one element at a time, and whoever walks stops where the answer is decided. Splitting
//! from the left would be simpler, but then a quote that a client left open could swallow the element that the proxy
//! appended. No byte is looked at more than a few times, whatever the list holds.
//!
//! ```
//! use idleguard_core::client_ip::{address::parse_address, forwarded::forwarded};
//! let lines = [b"for=\"192.0.2.66, for=203.0.113.5;proto=https".as_slice()];
//! assert_eq!(forwarded(lines.into_iter()).next(), Some(parse_address(b"203.0.113.5")));
//! ```

use std::net::IpAddr;

use crate::client_ip::address::{Element, last_element, parse_address, parse_node, trim_blanks, trim_end};

/// The elements of `x-forwarded-for`, right-most first; `None` is one that is no address. `lines` are the occurrences of
/// the header in order of arrival; a blank one counts as absent.
pub fn x_forwarded_for<'a, L: DoubleEndedIterator<Item = &'a [u8]>>(lines: L) -> XForwardedFor<'a, L> {
    XForwardedFor { lines, line: None }
}

/// The walk through `x-forwarded-for`.
#[derive(Clone, Debug)]
pub struct XForwardedFor<'a, L> {
    /// The lines to the left of `line`.
    lines: L,
    /// What is left of the current one; `None` if the next element begins with the next line.
    line: Option<&'a [u8]>,
}

impl<'a, L: DoubleEndedIterator<Item = &'a [u8]>> Iterator for XForwardedFor<'a, L> {
    type Item = Option<Element<'a>>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let mut rest = match self.line.take() {
            Some(rest) => rest,
            None => self.lines.rfind(|line| !is_blank(line))?,
        };
        loop {
            if let Some((element, before)) = last_element(rest) {
                self.line = before;
                return Some(Some(element));
            }
            match rest {
                [before @ .., b' ' | b'\t'] => rest = trim_end(before),
                _ => break,
            }
        }
        let element = match last_comma(rest) {
            None => rest,
            Some(at) => {
                self.line = rest.get(..at);
                rest.get(at..).and_then(<[u8]>::split_first).map(|(_, element)| element).unwrap_or_default()
            }
        };
        Some(parse_address(element).map(Element::from))
    }
}

/// The place of the last comma. Eight bytes are looked at together: of a long list, most of the work is to split it.
fn last_comma(text: &[u8]) -> Option<usize> {
    const EACH: u64 = u64::MAX / 255;
    const COMMAS: u64 = EACH * b',' as u64;
    const LOW_BITS: u64 = EACH * 0x7f;
    let mut rest = text;
    while let Some((before, eight)) = rest.split_last_chunk::<8>() {
        let others = u64::from_le_bytes(*eight) ^ COMMAS;
        // The high bit of each byte that is a comma; adding can't carry into the next byte.
        let commas = !((others & LOW_BITS).wrapping_add(LOW_BITS) | others | LOW_BITS);
        if commas != 0 {
            let behind = usize::try_from(commas.leading_zeros() / 8).ok()?;
            return rest.len().checked_sub(behind)?.checked_sub(1);
        }
        rest = before;
    }
    rest.iter().rposition(|byte| *byte == b',')
}

/// The elements of `forwarded` (RFC 7239 §4), right-most first; `None` is one whose `for` is no address, is missing, or
/// is there twice. `lines` are the occurrences of the header in order of arrival, read as if joined by commas; a blank
/// one counts as absent.
pub fn forwarded<'a>(lines: impl DoubleEndedIterator<Item = &'a [u8]> + Clone) -> impl Iterator<Item = Option<IpAddr>> {
    let lines = lines.rev().filter(|line| !is_blank(line));
    Elements { lines, line: None, may_quote: true, unescaped: Vec::new() }
}

/// Does the line hold nothing but spaces and tabs?
pub fn is_blank(line: &[u8]) -> bool {
    trim_blanks(line).is_empty()
}

/// The walk through `forwarded`.
///
/// ```text
/// list      = element *( "," element )
/// element   = [ parameter ] *( ";" [ parameter ] )
/// parameter = name [ "=" value ]
/// ```
///
/// Where a comma or semicolon stands between a pair of quotes, it separates nothing. Pairs are made from the right; a
/// quote behind an odd number of backslashes is escaped and counts for nothing, nor does one without a partner.
struct Elements<'a, L> {
    /// The lines to the left of `line`, the nearest first.
    lines: L,
    /// What is left of the current line; `None` if the next element begins with the next line.
    line: Option<&'a [u8]>,
    /// False once a quote without partner was met: further left there is none, so that the search is not repeated.
    may_quote: bool,
    /// A quoted value without its escapes. No proxy writes any, so as a rule this stays unallocated.
    unescaped: Vec<u8>,
}

/// What the parameters of one element say about its `for`.
enum For {
    Missing,
    Once(Option<IpAddr>),
    Repeated,
}

impl<'a, L: Iterator<Item = &'a [u8]> + Clone> Iterator for Elements<'a, L> {
    type Item = Option<IpAddr>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut end = match self.line.take() {
            Some(line) => line,
            None => self.lines.next()?,
        };
        let mut rest = end;
        let mut across_lines = false;
        let mut found = For::Missing;
        loop {
            let separator = match rest.split_last() {
                Some((b'"', before)) if self.may_quote && !is_escaped(before) => {
                    match self.opening_quote(before) {
                        Some((before, None)) => rest = before,
                        Some((before, Some(line))) => {
                            (rest, end) = (before, line);
                            across_lines = true;
                        }
                        None => {
                            self.may_quote = false;
                            rest = before;
                        }
                    }
                    continue;
                }
                Some((separator @ (b',' | b';'), _)) => Some(*separator),
                Some((_, before)) => {
                    rest = before;
                    continue;
                }
                None => None,
            };
            let parameter = end.get(rest.len()..).unwrap_or_default();
            if let Some(value) = for_value(parameter) {
                // A value that goes on in the next line holds a comma: no address.
                let address = if across_lines { None } else { self.address(value) };
                found = match found {
                    For::Missing => For::Once(address),
                    For::Once(_) | For::Repeated => For::Repeated,
                };
            }
            across_lines = false;
            rest = rest.split_last().map_or(rest, |(_, before)| before);
            end = rest;
            if separator != Some(b';') {
                self.line = separator.map(|_| rest);
                break;
            }
        }
        Some(match found {
            For::Once(address) => address,
            For::Missing | For::Repeated => None,
        })
    }
}

impl<'a, L: Iterator<Item = &'a [u8]> + Clone> Elements<'a, L> {
    /// The partner of a closing quote: what stands before it, and its line if that is another one, which then becomes
    /// the current one.
    fn opening_quote(&mut self, before: &'a [u8]) -> Option<(&'a [u8], Option<&'a [u8]>)> {
        if let Some(before) = before_last_quote(before) {
            return Some((before, None));
        }
        let mut lines = self.lines.clone();
        let (before, line) = lines.find_map(|line| Some((before_last_quote(line)?, line)))?;
        self.lines = lines;
        Some((before, Some(line)))
    }

    /// The address in the value of a `for`: one quoted string, or no quote at all.
    fn address(&mut self, value: &[u8]) -> Option<IpAddr> {
        let [b'"', quoted @ .., b'"'] = value else { return parse_node(value) };
        if !quoted.contains(&b'\\') {
            return parse_node(quoted);
        }
        self.unescaped.clear();
        let mut bytes = quoted.iter();
        while let Some(byte) = bytes.next() {
            match byte {
                b'"' => return None,
                b'\\' => self.unescaped.push(*bytes.next()?),
                _ => self.unescaped.push(*byte),
            }
        }
        parse_node(&self.unescaped)
    }
}

/// The value, if the parameter's name is `for`, in any case (RFC 7239 §4); no blank may stand before the `=`.
fn for_value(parameter: &[u8]) -> Option<&[u8]> {
    match trim_blanks(parameter) {
        [b'f' | b'F', b'o' | b'O', b'r' | b'R', b'=', value @ ..] => Some(trim_blanks(value)),
        _ => None,
    }
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
    use crate::client_ip::address::{canonical, parse_address};

    fn addresses<'a>(elements: impl Iterator<Item = Option<Element<'a>>>) -> impl Iterator<Item = Option<IpAddr>> {
        elements.map(|element| element.map(|element| element.address()))
    }

    fn texts(elements: impl Iterator<Item = Option<IpAddr>>) -> Vec<String> {
        elements.map(|element| element.map_or("-".into(), canonical)).collect()
    }

    fn read(lines: &[&str]) -> Vec<String> {
        texts(forwarded(lines.iter().map(|line| line.as_bytes())))
    }

    #[test]
    fn a_list_is_read_from_the_right_over_all_its_lines() {
        let lines: [&[u8]; 4] = [b"192.0.2.1, 192.0.2.2", b" \t", b",192.0.2.3:80", b"x , [::1]"];
        let walked = texts(addresses(x_forwarded_for(lines.into_iter())));
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
        assert_eq!(texts(addresses(x_forwarded_for([b",".as_slice()].into_iter()))), ["-", "-"]);
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
    fn a_quote_without_partner_separates_like_any_other_byte() {
        assert_eq!(read(&[r#"for="192.0.2.1, for=192.0.2.2"#]), ["192.0.2.2", "-"]);
        assert_eq!(read(&[r#"for=192.0.2.1, host=";for=192.0.2.2"#]), ["192.0.2.2", "192.0.2.1"]);
        assert_eq!(read(&[r#"for=192.0.2.1;host=""#, r#"for=192.0.2.2"#]), ["192.0.2.2", "192.0.2.1"]);
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

    /// Counts how far the walk has read, one line at a time.
    #[test]
    fn lines_further_left_are_not_read_before_they_are_needed() {
        let read = std::cell::Cell::new(0);
        let lines = [r#"for="192.0.2.1, ""#, "for=192.0.2.2", r#"for=192.0.2.3;host="h""#];
        let lines = lines.iter().map(|line| line.as_bytes()).inspect(|_| read.set(read.get() + 1));
        let mut elements = forwarded(lines);
        assert_eq!(elements.next(), Some(parse_address(b"192.0.2.3")));
        assert_eq!(read.get(), 1);
        assert_eq!(elements.next(), Some(parse_address(b"192.0.2.2")));
        assert_eq!(read.get(), 2);
    }
}
