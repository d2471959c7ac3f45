//! The `client_ip` section of the configuration, and what is dangerous about it.

use super::blocks::Cidr;
use super::chain::Form;
use super::names::{CONNECTION, Names};
use super::{ClientIp, Fallback, ORIGINAL_URL, Peers, STRIPPED, Source, Trust};
use crate::config::{ConfigError, Section, shorten};

impl ClientIp {
    /// Reads the section. Beside it come warnings: settings that are allowed, yet let clients choose their address if
    /// the network doesn't prevent it.
    ///
    /// # Errors
    /// If a key is unknown, or a value is of the wrong type or impossible.
    pub fn from_section(mut section: Section) -> Result<(Self, Vec<String>), ConfigError> {
        let mut warnings = Vec::new();
        let peers = take_trusted_proxies(&mut section, &mut warnings)?;
        let trust = match section.take_whole_number("trusted_hops", 1)? {
            None => Trust::Listed(peers),
            Some(count) => {
                if peers.are_none() {
                    warnings.push(format!(
                        "{}: {count} without trusted_proxies believes any peer: make sure that only your own proxies can \
                         connect",
                        section.path_of("trusted_hops"),
                    ));
                }
                Trust::Hops { peers, count }
            }
        };
        let sources = take_names(&mut section, "sources")?.unwrap_or_else(|| owned(&["x-forwarded-for"]));
        let set = take_names(&mut section, "set")?.unwrap_or_else(|| owned(&["x-forwarded-for", "x-real-ip"]));
        // By default less what is in `sources` or `set`, which `Names` sees to: those are removed and written anyway.
        let strip = take_names(&mut section, "strip")?.unwrap_or_else(|| owned(STRIPPED));
        let fallbacks = [("peer", Fallback::Peer), ("omit", Fallback::Omit), ("reject", Fallback::Reject)];
        let on_invalid = section.take_word("on_invalid", &fallbacks)?;
        let on_missing = section.take_word("on_missing", &fallbacks)?;
        let key = "the key of a filter state";
        let peer_filter_state = section
            .take_with("peer_filter_state", key, |value| {
                value.as_str().filter(|key| !key.is_empty()).map(str::to_owned)
            })?
            .unwrap_or_else(|| super::DEFAULT_PEER_FILTER_STATE.into());
        warn_of_order(&section, &sources, &mut warnings);
        section.finish()?;

        let mut names = Names::new(&sources, &set, &strip);
        [CONNECTION, ORIGINAL_URL].iter().for_each(|name| names.note_first(name));
        let sources: Vec<Source> = sources.into_iter().map(|name| Source { form: Form::of(&name), name }).collect();
        let on_missing = on_missing.unwrap_or_else(|| {
            let is_single = |source: &Source| source.form == Form::Address;
            if sources.iter().any(is_single) { Form::Address.fallback() } else { Fallback::Peer }
        });
        Ok((Self { trust, sources, on_invalid, on_missing, peer_filter_state, names }, warnings))
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn take_trusted_proxies(section: &mut Section, warnings: &mut Vec<String>) -> Result<Peers, ConfigError> {
    const ALLOWED: &str = "an address or a block such as \"10.0.0.0/8\" or \"2001:db8::/32\", with neither zone nor port, \
                           or \"private\", \"loopback\" or \"unix\"";
    let mut blocks = Vec::new();
    let mut unix = false;
    for (key, text) in section.take_strings("trusted_proxies", "a list of addresses and blocks")?.unwrap_or_default() {
        if text == "unix" {
            unix = true;
        } else if let Some(preset) = Cidr::preset(&text) {
            blocks.extend(preset);
        } else if let Some(block) = Cidr::parse(&text) {
            if block.is_everyone() {
                let family = if block.is_v4() { "IPv4" } else { "IPv6" };
                warnings.push(format!(
                    "{key}: {} trusts every {family} address: whoever connects from one can choose his own address",
                    quoted(&text),
                ));
            }
            blocks.push(block);
        } else {
            return Err(ConfigError { key, given: quoted(&text), allowed: ALLOWED.into() });
        }
    }
    Ok(Peers { blocks: blocks.into_iter().collect(), unix })
}

/// Header names (`token`, RFC 9110 §5.6.2), in lower case.
fn take_names(section: &mut Section, key: &'static str) -> Result<Option<Vec<String>>, ConfigError> {
    const ALLOWED: &str = "a header name: letters, digits and !#$%&'*+-.^_`|~";
    let Some(names) = section.take_strings(key, "a list of header names")? else { return Ok(None) };
    let is_token_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let name = |(key, name): (String, String)| {
        if name.is_empty() || !name.bytes().all(is_token_byte) {
            return Err(ConfigError { key, given: quoted(&name), allowed: ALLOWED.into() });
        }
        Ok(name.to_ascii_lowercase())
    };
    names.into_iter().map(name).collect::<Result<_, _>>().map(Some)
}

/// A client can add a header that no proxy of ours sets or removes; in front of a list it would decide.
fn warn_of_order(section: &Section, sources: &[String], warnings: &mut Vec<String>) {
    let path = section.path_of("sources");
    for (at, name) in sources.iter().enumerate() {
        let later_list = sources.iter().skip(at).find(|later| Form::of(later) != Form::Address);
        if let Some(list) = later_list
            && Form::of(name) == Form::Address
        {
            warnings.push(format!(
                "{path}[{at}]: \"{name}\" is asked before the list \"{list}\": unless every trusted proxy sets or removes \
                 it, clients can choose their address there",
            ));
        }
    }
}

/// A string of the configuration as JSON, for messages; a long one is cut.
fn quoted(text: &str) -> String {
    shorten(&text.into())
}
