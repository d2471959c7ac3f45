//! Where something stands in a configuration: keys and indices from the root.

use std::fmt;

use serde_json::Value;

use crate::document::spelling;

/// One step down.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Into a mapping.
    Key(String),
    /// Into a list.
    Index(usize),
}

/// The steps from the root to a node. Prints as `static_resources.clusters[0].name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(pub Vec<Step>);

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

impl Path {
    /// The path of keys that are joined by dots.
    pub fn of(keys: &str) -> Self {
        Self(keys.split('.').map(Step::from).collect())
    }

    /// One step further.
    #[must_use]
    pub fn then(&self, step: impl Into<Step>) -> Self {
        let mut steps = self.0.clone();
        steps.push(step.into());
        Self(steps)
    }

    /// Several keys further, joined by dots.
    #[must_use]
    pub fn keys(&self, keys: &str) -> Self {
        Self(self.0.iter().cloned().chain(Self::of(keys).0).collect())
    }

    /// The steps of another path, further down.
    #[must_use]
    pub fn join(&self, below: &Self) -> Self {
        Self([self.0.as_slice(), below.0.as_slice()].concat())
    }

    /// The last step, and the path to what it starts from.
    pub fn split_last(&self) -> Option<(Self, &Step)> {
        let (last, parents) = self.0.split_last()?;
        Some((Self(parents.to_vec()), last))
    }

    /// What stands there, however its keys are spelled; one item may stand for a list of one.
    pub fn get<'a>(&self, root: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(root, |value, step| match step {
            Step::Key(key) => value.get(spelled(value, key)?),
            Step::Index(0) if !value.is_array() => Some(value),
            Step::Index(index) => value.get(index),
        })
    }

    /// What stands there, to be changed.
    pub fn get_mut<'a>(&self, root: &'a mut Value) -> Option<&'a mut Value> {
        self.0.iter().try_fold(root, |value, step| match step {
            Step::Key(key) => {
                let key = spelled(value, key)?.to_owned();
                value.get_mut(key)
            }
            Step::Index(0) if !value.is_array() => Some(value),
            Step::Index(index) => value.get_mut(index),
        })
    }

    /// Whether `self` stands at `other` or below it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if at == 0 => write!(f, "{key}")?,
                Step::Key(key) if key.contains('.') => write!(f, "[{key:?}]")?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// How a mapping spells a key: as it is given, or in lowerCamelCase.
pub fn spelled<'a>(map: &'a Value, key: &'a str) -> Option<&'a str> {
    let map = map.as_object()?;
    match map.contains_key(key) {
        true => Some(key),
        false => map.keys().map(String::as_str).find(|name| spelling::is_same(name, key)),
    }
}

/// Calls `visit` for every value of a tree, the root first, with its path.
pub fn walk<'a>(root: &'a Value, visit: &mut impl FnMut(&Path, &'a Value)) {
    fn descend<'a>(path: &mut Path, value: &'a Value, visit: &mut impl FnMut(&Path, &'a Value)) {
        visit(path, value);
        let children: Vec<(Step, &Value)> = match value {
            Value::Object(entries) => entries.iter().map(|(key, value)| (Step::Key(key.clone()), value)).collect(),
            Value::Array(items) => items.iter().enumerate().map(|(at, value)| (Step::Index(at), value)).collect(),
            _ => return,
        };
        for (step, child) in children {
            path.0.push(step);
            descend(path, child, visit);
            path.0.pop();
        }
    }
    descend(&mut Path::default(), root, visit);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_reads_as_one_would_write_it() {
        let path = Path::of("static_resources.clusters").then(1).keys("typed_config").then("a.b");
        assert_eq!(path.to_string(), "static_resources.clusters[1].typed_config[\"a.b\"]");
        assert_eq!(Path::of("a.b").then(0).get(&json!({"a": {"b": [7]}})), Some(&json!(7)));
        assert!(path.is_within(&Path::of("static_resources")) && !Path::of("a").is_within(&path));
    }
}
