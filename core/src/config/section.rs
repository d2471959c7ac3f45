//! Reads one JSON object of the configuration, key by key, and says precisely what is wrong with it.
//!
//! A derived deserializer would name the line and column of a text that nobody sees: Envoy makes it from a protobuf
//! message. Operators need the key, what they wrote there, and what they may write.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::json_text::JsonText;
use crate::time::{DURATION_FORMS, DurationText, parse_duration};

/// One thing that is wrong with the configuration.
///
/// Its text is `key: given is not allowed: allowed`, for example
/// `client_ip.trusted_hops: 0 is not allowed: a whole number from 1 up`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where: the path of keys, joined by dots (`destinations.payments.margin`); empty for the whole configuration.
    pub key: String,
    /// What stood there, as JSON.
    pub given: String,
    /// What may stand there, in words.
    pub allowed: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = if self.key.is_empty() { "configuration" } else { &self.key };
        write!(f, "{key}: {} is not allowed: {}", self.given, self.allowed)
    }
}

impl std::error::Error for ConfigError {}

/// A JSON object on its way to becoming a part of the configuration. Each key is taken once; [`finish`](Self::finish)
/// refuses what nobody took.
#[derive(Debug)]
pub struct Section {
    path: String,
    values: Vec<(String, Value)>,
    known: Vec<&'static str>,
}

impl Section {
    /// The section at `path` (dotted, empty for the root).
    ///
    /// # Errors
    /// If `value` is no JSON object.
    pub fn try_new(path: impl Into<String>, value: Value) -> Result<Self, ConfigError> {
        let path = path.into();
        match value {
            Value::Object(values) => Ok(Self { path, values: values.into_iter().collect(), known: Vec::new() }),
            other => Err(ConfigError { key: path, given: shorten(&other), allowed: "a JSON object".into() }),
        }
    }

    /// The path of `key` within this section.
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The error that `given` at `key` is not `allowed`.
    pub fn error(&self, key: &str, given: &Value, allowed: impl Into<String>) -> ConfigError {
        ConfigError { key: self.path_of(key), given: shorten(given), allowed: allowed.into() }
    }

    /// Takes the value of `key`, whatever it is.
    pub fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        let at = self.values.iter().position(|(name, _)| name == key)?;
        Some(self.values.remove(at).1)
    }

    /// Takes `key` through `read`; `None` from `read` means "not allowed", and `allowed` says what is. An absent key is
    /// `None`, a `null` is an error.
    ///
    /// # Errors
    /// If `read` refuses the value.
    pub fn take_with<T>(
        &mut self,
        key: &'static str,
        allowed: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => match read(&value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.error(key, &value, allowed)),
            },
        }
    }

    /// Takes a boolean.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn take_bool(&mut self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        self.take_with(key, "true or false", Value::as_bool)
    }

    /// Takes a string.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn take_string(&mut self, key: &'static str, allowed: &str) -> Result<Option<String>, ConfigError> {
        self.take_with(key, allowed, |value| value.as_str().map(str::to_owned))
    }

    /// Takes a duration of at least `shortest` and at most `longest`.
    ///
    /// # Errors
    /// If the value is no duration, or out of range.
    pub fn take_duration(
        &mut self,
        key: &'static str,
        shortest: Duration,
        longest: Duration,
    ) -> Result<Option<Duration>, ConfigError> {
        let allowed = format!("{DURATION_FORMS}, from {} to {}", DurationText(shortest), DurationText(longest));
        self.take_with(key, &allowed, |value| {
            value.as_str().and_then(parse_duration).filter(|duration| (shortest..=longest).contains(duration))
        })
    }

    /// Takes one of the given words.
    ///
    /// # Errors
    /// If the value is none of them.
    pub fn take_word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Result<Option<T>, ConfigError> {
        let names: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        self.take_with(key, &names.join(" or "), |value| {
            let given = value.as_str()?;
            words.iter().find(|(word, _)| *word == given).map(|(_, meaning)| *meaning)
        })
    }

    /// Takes a whole number of at least `least`. A `Struct` carries every number as a double, so `2.0` is 2.
    ///
    /// # Errors
    /// If the value is no such number.
    pub fn take_whole_number(&mut self, key: &'static str, least: u32) -> Result<Option<u32>, ConfigError> {
        self.take_with(key, &format!("a whole number from {least} up"), |value| {
            whole_number(value).filter(|number| *number >= least)
        })
    }

    /// Takes a list of strings, each with its place in the list (`client_ip.sources[1]`) for error messages of the
    /// caller's own.
    ///
    /// # Errors
    /// If the value is no list, or an element is no string.
    pub fn take_strings(
        &mut self,
        key: &'static str,
        allowed: &str,
    ) -> Result<Option<Vec<(String, String)>>, ConfigError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let Value::Array(elements) = &value else { return Err(self.error(key, &value, allowed)) };
        let mut strings = Vec::with_capacity(elements.len());
        for (at, element) in elements.iter().enumerate() {
            let place = format!("{}[{at}]", self.path_of(key));
            match element {
                Value::String(text) => strings.push((place, text.clone())),
                other => {
                    return Err(ConfigError { key: place, given: shorten(other), allowed: "a string".into() });
                }
            }
        }
        Ok(Some(strings))
    }

    /// Takes a section within this one.
    ///
    /// # Errors
    /// If the value is no JSON object.
    pub fn take_section(&mut self, key: &'static str) -> Result<Option<Section>, ConfigError> {
        let path = self.path_of(key);
        self.take(key).map(|value| Section::try_new(path, value)).transpose()
    }

    /// Takes the remaining keys, for a section whose keys are names that the operator chose.
    pub fn into_entries(self) -> (String, Vec<(String, Value)>) {
        (self.path, self.values)
    }

    /// Every key that may stand here has been taken: what is left is unknown.
    ///
    /// # Errors
    /// If a key is left.
    pub fn finish(self) -> Result<(), ConfigError> {
        self.finish_without(&[])
    }

    /// The same, where earlier versions had more keys: for each of those a sentence says what takes its place.
    ///
    /// # Errors
    /// If a key is left.
    pub fn finish_without(self, retired: &[(&str, &str)]) -> Result<(), ConfigError> {
        let Some((key, value)) = self.values.first() else { return Ok(()) };
        let allowed = match retired.iter().find(|(name, _)| name == key) {
            Some((_, instead)) => format!("a key of idleguard 0.1: {instead}"),
            None => format!("an unknown key; the keys here are {}", self.known.join(", ")),
        };
        Err(self.error(key, value, allowed))
    }
}

/// `value` as JSON for a log line: a long one is cut.
pub fn shorten(value: &Value) -> String {
    const LONGEST: usize = 120;
    let text = JsonText(value).to_string();
    match text.char_indices().nth(LONGEST) {
        None => text,
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

/// The value as a whole number, if it is one and fits.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked: whole, and within u32")]
fn whole_number(value: &Value) -> Option<u32> {
    let number = value.as_f64()?;
    (number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number)).then_some(number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn section(value: Value) -> Section {
        Section::try_new("a.b", value).unwrap()
    }

    #[test]
    fn an_error_names_the_key_what_was_given_and_what_is_allowed() {
        let mut numbers = section(json!({"hops": 0}));
        let error = numbers.take_whole_number("hops", 1).unwrap_err();
        assert_eq!(error.to_string(), "a.b.hops: 0 is not allowed: a whole number from 1 up");
        let error = Section::try_new("", json!([])).unwrap_err();
        assert_eq!(error.to_string(), "configuration: [] is not allowed: a JSON object");
    }

    #[test]
    fn a_key_that_nobody_took_is_refused() {
        let mut known = section(json!({"margin": "1s", "marginn": "2s"}));
        known.take_duration("margin", Duration::ZERO, Duration::MAX).unwrap();
        let error = known.finish().unwrap_err().to_string();
        assert_eq!(error, "a.b.marginn: \"2s\" is not allowed: an unknown key; the keys here are margin");
    }

    #[test]
    fn durations_words_and_numbers_are_checked() {
        let second = Duration::from_secs(1);
        let mut values = section(json!({"short": "999ms", "word": "on", "two": 2.0, "half": 0.5, "null": null}));
        let error = values.take_duration("short", second, Duration::from_secs(3600)).unwrap_err().to_string();
        assert!(error.ends_with("from 1s to 1h"), "{error}");
        assert_eq!(values.take_word("word", &[("on", 1), ("off", 2)]), Ok(Some(1)));
        assert_eq!(values.take_whole_number("two", 1), Ok(Some(2)));
        assert!(values.take_whole_number("half", 0).is_err());
        assert!(values.take_bool("null").is_err());
        assert_eq!(values.take_bool("absent"), Ok(None));
    }
}
