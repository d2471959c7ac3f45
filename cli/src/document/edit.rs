//! Edits: each changes the value, and the text in the few lines where it must.
//!
//! What is put in goes between whole lines, or, in flow style and JSON, before something that is there, so that no existing line
//! changes where lines are what it is written in. Taking it out is the exact inverse.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use super::{Document, Format, Kind, Node, emit, spelling};
use crate::path::{Path, Step, spelled};

/// Where in a mapping a new key goes. In flow style and in JSON it goes before all others.
#[derive(Clone, Copy, Debug)]
pub enum Spot<'a> {
    /// Behind all others.
    End,
    /// Before this key and the comment above it, if the key is there; else behind all others.
    Before(&'a str),
    /// Behind this key, if it is there; else behind all others.
    After(&'a str),
}

/// A piece of YAML to put in: comment lines, then a value in block style without indentation.
struct Snippet<'a> {
    comments: Vec<&'a str>,
    body: Vec<&'a str>,
    value: Value,
}

impl<'a> Snippet<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let lines: Vec<&str> = text.trim_end().lines().collect();
        let first = lines.iter().position(|line| !line.starts_with('#')).context("a snippet without a value")?;
        let (comments, body) = lines.split_at_checked(first).unwrap_or_default();
        let wrapped: String = body.iter().map(|line| format!(" {line}\n")).collect();
        let document = Document::parse(&format!("x:\n{wrapped}")).with_context(|| format!("in {text}"))?;
        let value = document.raw.get("x").cloned().unwrap_or_default();
        Ok(Self { comments: comments.to_vec(), body: body.to_vec(), value })
    }

    /// Whether it fits behind `key:`.
    fn is_inline(&self) -> bool {
        self.body.len() == 1 && !(self.value.is_object() || self.value.is_array())
            || matches!(self.body.as_slice(), [line] if line.starts_with(['{', '[']))
    }

    fn as_list_item(&self, column: usize) -> String {
        let blank = " ".repeat(column);
        let comments = self.comments.iter().map(|line| format!("{blank}{line}\n"));
        let body = self.body.iter().enumerate().map(|(at, line)| {
            let lead = if at == 0 { "- " } else { "  " };
            format!("{blank}{lead}{line}").trim_end().to_owned() + "\n"
        });
        comments.chain(body).collect()
    }

    fn as_entry(&self, key: &str, column: usize) -> String {
        let blank = " ".repeat(column);
        let comments: String = self.comments.iter().map(|line| format!("{blank}{line}\n")).collect();
        if self.is_inline() {
            return format!("{comments}{blank}{key}: {}\n", self.body.concat());
        }
        let deeper = if self.value.is_array() { "" } else { "  " };
        let body: String =
            self.body.iter().map(|line| format!("{blank}{deeper}{line}").trim_end().to_owned() + "\n").collect();
        format!("{comments}{blank}{key}:\n{body}")
    }
}

impl Document {
    /// Puts an item into a list, before the one that is at this index now.
    ///
    /// # Errors
    /// If there is no list, or the snippet is no YAML.
    pub fn insert_item(&mut self, list: &Path, at: usize, snippet: &str) -> Result<()> {
        let snippet = Snippet::parse(snippet)?;
        self.wants_list(list)?;
        let insert = |root: &mut Value, list: &Path, item: Value| {
            let items =
                list.get_mut(root).and_then(Value::as_array_mut).with_context(|| format!("no list at {list}"))?;
            items.insert(at.min(items.len()), item);
            Ok(())
        };
        self.apply(&self.twins(list), &snippet.value, &insert, &|document| document.text_with_item(list, at, &snippet))
    }

    /// Puts an item into a list whose order means nothing: behind all others, or, in flow style, before them.
    ///
    /// # Errors
    /// If there is no list, or the snippet is no YAML.
    pub fn add_item(&mut self, list: &Path, snippet: &str) -> Result<()> {
        let at = if self.is_flow(list) { 0 } else { usize::MAX };
        self.insert_item(list, at, snippet)
    }

    /// Whether a mapping or list is in flow style, as all of JSON is.
    pub fn is_flow(&self, path: &Path) -> bool {
        self.format == Format::Json || self.node(path).is_ok_and(|node| node.flow)
    }

    /// Puts a new key into a mapping.
    ///
    /// # Errors
    /// If there is no mapping, the key is there, or the snippet is no YAML.
    pub fn insert_key(&mut self, map: &Path, key: &str, spot: Spot<'_>, snippet: &str) -> Result<()> {
        let snippet = Snippet::parse(snippet)?;
        let insert = |root: &mut Value, map: &Path, value: Value| {
            let entries =
                map.get_mut(root).and_then(Value::as_object_mut).with_context(|| format!("no mapping at {map}"))?;
            match entries.insert(key.to_owned(), value) {
                None => Ok(()),
                Some(Value::Null) => bail!("{} has no value: give it one, or take it out", map.then(key)),
                Some(_) => bail!("{map} has a key {key} already"),
            }
        };
        self.apply(&self.twins(map), &snippet.value, &insert, &|document| {
            document.text_with_key(map, key, spot, &snippet)
        })
    }

    /// Replaces a scalar, or anything by a scalar.
    ///
    /// # Errors
    /// If nothing stands there.
    pub fn set(&mut self, path: &Path, new: impl Into<Value>) -> Result<()> {
        let new = new.into();
        let replace = |root: &mut Value, path: &Path, new: Value| {
            *path.get_mut(root).with_context(|| format!("nothing at {path}"))? = new;
            Ok(())
        };
        self.apply(std::slice::from_ref(path), &new, &replace, &|document| document.text_with_value(path, &new))
    }

    /// Takes out a key or a list's item, and those lines right above it that are these comments.
    ///
    /// # Errors
    /// If it isn't there.
    pub fn remove(&mut self, path: &Path, comments: &[&str]) -> Result<()> {
        let (parent, step) = path.split_last().context("the root can't be removed")?;
        let take_out = |root: &mut Value, parent: &Path, _: Value| {
            let parent = parent.get_mut(root).with_context(|| format!("nothing at {path}"))?;
            match step {
                Step::Key(key) => {
                    let key = spelled(parent, key).with_context(|| format!("nothing at {path}"))?.to_owned();
                    parent.as_object_mut().and_then(|entries| entries.shift_remove(&key)).map(drop)
                }
                Step::Index(at) => {
                    parent.as_array_mut().filter(|items| *at < items.len()).map(|items| drop(items.remove(*at)))
                }
            }
            .with_context(|| format!("nothing at {path}"))
        };
        self.apply(&self.twins(&parent), &Value::Null, &take_out, &|document| {
            document.text_without(&parent, step, comments)
        })
    }

    /// Whether the line right above a key or a list's item, in block style, is this comment.
    pub fn is_below(&self, path: &Path, comment: &str) -> bool {
        let Some((parent, step)) = path.split_last() else { return false };
        let start = self.node(&parent).and_then(|node| self.first_line(node, step));
        start.is_ok_and(|line| self.line_above(line).is_some_and(|(_, text)| text.trim() == comment))
    }

    fn wants_list(&self, list: &Path) -> Result<()> {
        let is_one = list.get(&self.raw).is_some_and(|raw| !raw.is_array());
        match self.root.as_ref() {
            _ if is_one => {
                bail!("a list is wanted at {list}: Envoy takes one item for it, but beside that no other has a place")
            }
            _ => Ok(()),
        }
    }

    /// Changes the value at these places, and the text if it can be changed so that it says the same; else writes the text anew.
    fn apply(
        &mut self,
        places: &[Path],
        new: &Value,
        change: &dyn Fn(&mut Value, &Path, Value) -> Result<()>,
        edit: &dyn Fn(&Self) -> Result<String>,
    ) -> Result<()> {
        let mut raw = self.raw.clone();
        places.iter().try_for_each(|place| change(&mut raw, place, new.clone()))?;
        let edited = edit(self).and_then(|text| Self::read(text, self.format));
        let lost = self.comments_lost.take();
        *self = match edited {
            Ok(document) if document.value == spelling::canonical(&raw) => Self { comments_lost: lost, ..document },
            _ if self.format == Format::Json => Self::read(render_json(&self.text, &raw)?, Format::Json)?,
            other => {
                let reason = other.map_or_else(
                    |error| format!("{error:#}"),
                    |_| "an alias of what must change, or a style that can't be edited in place".to_owned(),
                );
                let text = emit::yaml(&raw) + "\n";
                Self { comments_lost: lost.or(Some(reason)), ..Self::read(text, Format::Yaml)? }
            }
        };
        Ok(())
    }

    fn text_with_item(&self, list: &Path, at: usize, snippet: &Snippet<'_>) -> Result<String> {
        let node = self.node(list)?;
        let Kind::List(items) = &node.kind else { bail!("no list") };
        if node.flow {
            return match (items.get(at), items.last()) {
                (Some(item), _) => self.spliced_before(item, "", &snippet.value),
                (None, Some(last)) => self.spliced(last.end, last.end, &format!(", {}", self.flow(&snippet.value))),
                (None, None) => self.spliced(node.start + 1, node.start + 1, &self.flow(&snippet.value)),
            };
        }
        let column = node.place.column - 1;
        let text = snippet.as_list_item(column);
        match items.get(at) {
            Some(item) => {
                let line = self.dash_line(item, node, at == 0)?;
                let start = self.above_comments(line, column);
                self.spliced(start, start, &text)
            }
            None => self.spliced_behind(items.last().context("an empty block list")?.end, &text),
        }
    }

    fn text_with_key(&self, map: &Path, key: &str, spot: Spot<'_>, snippet: &Snippet<'_>) -> Result<String> {
        let node = if map.0.is_empty() { self.root.as_ref().context("no tree")? } else { self.node(map)? };
        let Kind::Map(entries) = &node.kind else { bail!("no mapping") };
        if node.flow {
            let key =
                format!("{}: ", if self.format == Format::Json { Value::from(key).to_string() } else { flow_key(key) });
            return match entries.first() {
                Some((first, _)) => self.spliced_before(first, &key, &snippet.value),
                None => self.spliced(node.start + 1, node.start + 1, &format!("{key}{}", self.flow(&snippet.value))),
            };
        }
        let named = |wanted: &str| entries.iter().find(|(key, _)| key.is_named(wanted));
        let column = node.place.column - 1;
        let text = snippet.as_entry(&flow_key(key), column);
        if let Spot::Before(next) = spot
            && let Some((next, _)) = named(next)
            && let Ok(line) = self.own_line(next.begin)
        {
            let start = self.above_comments(line, column);
            return self.spliced(start, start, &text);
        }
        let last = match spot {
            Spot::After(key) => named(key).or(entries.last()),
            Spot::End | Spot::Before(_) => entries.last(),
        };
        let (last, value) = last.context("an empty block mapping")?;
        self.spliced_behind(value.end.max(last.end), &text)
    }

    /// With a value, or a key and a value, put in before an item or a key of flow style. Where that begins a line, the new
    /// one gets lines of its own.
    fn spliced_before(&self, next: &Node, key: &str, value: &Value) -> Result<String> {
        let Ok(line) = self.own_line(next.begin) else {
            return self.spliced(next.begin, next.begin, &format!("{key}{}, ", self.flow(value)));
        };
        let indent = self.text.get(line..next.begin).unwrap_or_default();
        let text = if self.format == Format::Json { pretty_json(&self.text, value)? } else { self.flow(value) };
        let text = text.replace('\n', &format!("\n{indent}"));
        self.spliced(next.begin, next.begin, &format!("{key}{text},\n{indent}"))
    }

    fn flow(&self, value: &Value) -> String {
        if self.format == Format::Json { value.to_string() } else { flow(value) }
    }

    fn text_with_value(&self, path: &Path, new: &Value) -> Result<String> {
        let node = self.node(path)?;
        if self.format == Format::Json {
            return self.spliced(node.start, node.end, &new.to_string());
        }
        let in_flow = path.split_last().is_some_and(|(parent, _)| self.node(&parent).is_ok_and(|parent| parent.flow));
        let old = self.text.get(node.start..node.end).unwrap_or_default();
        let blank = if old.is_empty() { " " } else { "" }; // of nothing, the place is behind `key:`
        match new {
            Value::String(text) if text.ends_with('\n') && !in_flow => {
                // The comment in the line stays there, which a block's text is below.
                let (end, comment) = if old.starts_with(['|', '>']) {
                    (node.end, old.lines().next().and_then(|header| header.split_once(" #")))
                } else {
                    let rest = self.text.get(node.end..self.behind_line(node.end)).unwrap_or_default();
                    (node.end + rest.trim_end().len(), rest.trim_end().split_once(" #"))
                };
                let comment = comment.map(|(_, comment)| format!(" #{comment}")).unwrap_or_default();
                let (parent, _) = path.split_last().context("no parent")?;
                let indent = " ".repeat(self.node(&parent)?.place.column + 1);
                let lines: String = text.lines().map(|line| format!("\n{indent}{line}")).collect();
                self.spliced(node.start, end, &format!("{blank}|{comment}{lines}"))
            }
            other => self.spliced(node.start, node.end, &format!("{blank}{}", flow(other))),
        }
    }

    fn text_without(&self, parent: &Path, step: &Step, comments: &[&str]) -> Result<String> {
        let node = if parent.0.is_empty() { self.root.as_ref().context("no tree")? } else { self.node(parent)? };
        // What goes, from its first byte, and what stands beside it.
        let (first, last, before, next) = match (&node.kind, step) {
            (Kind::List(items), Step::Index(at)) => {
                let item = items.get(*at).context("no such item")?;
                let before = at.checked_sub(1).and_then(|before| items.get(before));
                (item, item, before, items.get(at + 1))
            }
            (Kind::Map(entries), Step::Key(key)) => {
                let at = entries.iter().position(|(name, _)| name.is_named(key)).context("no such key")?;
                let (name, value) = entries.get(at).context("no such key")?;
                let before = at.checked_sub(1).and_then(|before| entries.get(before));
                (name, value, before.map(|(_, value)| value), entries.get(at + 1).map(|(name, _)| name))
            }
            _ => bail!("nothing there"),
        };
        if node.flow {
            return match (before, next) {
                (_, Some(next)) => self.spliced(first.begin, next.begin, ""),
                (Some(before), None) => self.spliced(before.end, last.end, ""),
                (None, None) => self.spliced(first.begin, last.end, ""),
            };
        }
        let mut start = self.first_line(node, step)?;
        while let Some((above, text)) = self.line_above(start)
            && comments.contains(&text.trim())
        {
            start = above;
        }
        let end = self.behind_line(last.end.max(first.end));
        if end == self.text.len() && !self.text.ends_with('\n') && start > 0 {
            start -= if self.text.get(..start).is_some_and(|before| before.ends_with("\r\n")) { 2 } else { 1 };
        }
        self.spliced(start, end, "")
    }

    /// The start of the line that a key, or the dash of a list's item, begins.
    fn first_line(&self, node: &Node, step: &Step) -> Result<usize> {
        match (&node.kind, step) {
            (Kind::List(items), Step::Index(at)) if !node.flow => {
                self.dash_line(items.get(*at).context("no such item")?, node, *at == 0)
            }
            (Kind::Map(entries), Step::Key(key)) if !node.flow => {
                let (name, _) = entries.iter().find(|(name, _)| name.is_named(key)).context("no such key")?;
                self.own_line(name.begin)
            }
            _ => bail!("no lines of its own"),
        }
    }

    /// The line above the one that starts here.
    fn line_above(&self, start: usize) -> Option<(usize, &str)> {
        let above = self.line_start(start.checked_sub(1)?);
        Some((above, self.text.get(above..start)?))
    }

    // === places in the text ===

    /// With `new` in place of these bytes, its lines ended as the file's are.
    fn spliced(&self, start: usize, end: usize, new: &str) -> Result<String> {
        let (before, after) = (self.text.get(..start), self.text.get(end..));
        let new = if self.text.contains("\r\n") { new.replace('\n', "\r\n") } else { new.to_owned() };
        Ok([before.context("not in the text")?, &new, after.context("not in the text")?].concat())
    }

    /// With whole lines put in behind the line that holds the byte before `end`.
    fn spliced_behind(&self, end: usize, lines: &str) -> Result<String> {
        let at = self.behind_line(end);
        let needs_break = at == self.text.len() && !self.text.ends_with('\n');
        self.spliced(at, at, &if needs_break { format!("\n{}", lines.trim_end()) } else { lines.to_owned() })
    }

    fn line_start(&self, at: usize) -> usize {
        self.text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |found| found + 1)
    }

    fn behind_line(&self, at: usize) -> usize {
        self.text.get(at..).and_then(|rest| rest.find('\n')).map_or(self.text.len(), |found| at + found + 1)
    }

    /// The start of the line, if nothing but blanks stands before `at`.
    fn own_line(&self, at: usize) -> Result<usize> {
        let start = self.line_start(at);
        match self.text.get(start..at).is_some_and(|before| before.trim().is_empty()) {
            true => Ok(start),
            false => bail!("something stands before it in its line"),
        }
    }

    /// The start of the line in which the dash of a list item stands.
    fn dash_line(&self, item: &Node, list: &Node, is_first: bool) -> Result<usize> {
        if is_first {
            return self.own_line(list.start);
        }
        let column = list.place.column - 1;
        let mut start = self.line_start(item.start);
        loop {
            let line = self.text.get(start..self.behind_line(start)).unwrap_or_default();
            if indentation(line) == column && line.trim_start().starts_with('-') {
                return Ok(start);
            }
            start = self.line_start(start.checked_sub(1).context("no dash")?);
        }
    }

    /// The start of the comment lines right above `line` that are indented like it.
    fn above_comments(&self, line: usize, column: usize) -> usize {
        let mut start = line;
        while let Some(above) = start.checked_sub(1).map(|end| self.line_start(end)) {
            let text = self.text.get(above..start).unwrap_or_default();
            if indentation(text) != column || !text.trim_start().starts_with('#') {
                break;
            }
            start = above;
        }
        start
    }
}

impl Node {
    fn is_named(&self, wanted: &str) -> bool {
        self.name().is_some_and(|name| spelling::is_same(&name, wanted))
    }
}

pub(super) fn indentation(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// The value in one line, as YAML and JSON both read it; a text with quotes in YAML's single ones.
fn flow(value: &Value) -> String {
    match value {
        Value::String(text) if text.contains('"') && !text.contains(|c: char| c.is_control()) => {
            format!("'{}'", text.replace('\'', "''"))
        }
        Value::String(_) => emit::yaml(value),
        other => other.to_string(),
    }
}

fn flow_key(key: &str) -> String {
    emit::yaml(&Value::String(key.to_owned()))
}

/// The value in the style of the text that it replaces: its indentation, or one line.
fn render_json(text: &str, value: &Value) -> Result<String> {
    let ending = if text.ends_with('\n') { "\n" } else { "" };
    match text.trim().contains('\n') {
        true => Ok(pretty_json(text, value)? + ending),
        false => Ok(value.to_string() + ending),
    }
}

/// The value in lines, indented as the text is.
fn pretty_json(text: &str, value: &Value) -> Result<String> {
    let blank = text.lines().find_map(|line| {
        let trimmed = line.trim_start();
        line.get(..line.len() - trimmed.len()).filter(|blank| !blank.is_empty() && !trimmed.is_empty())
    });
    let formatter = serde_json::ser::PrettyFormatter::with_indent(blank.unwrap_or("  ").as_bytes());
    let mut out = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))?;
    Ok(String::from_utf8(out)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn edited(text: &str, edit: impl FnOnce(&mut Document)) -> Document {
        let mut document = Document::parse(text).unwrap();
        edit(&mut document);
        document
    }

    const LIST: &str = "\
list:                # what it is
- a: 1               # one
  # about b
  b: |
    text
    # still text
  # the end of the first

# about the second
- c: 2
# the last word
";

    #[test]
    fn an_item_goes_between_others_and_no_comment_is_lost() {
        let list = Path::of("list");
        let middle = edited(LIST, |document| document.insert_item(&list, 1, "# new\nx: 1\ny: [2]\n").unwrap());
        let expected = LIST.replace("# about the second\n", "# new\n- x: 1\n  y: [2]\n# about the second\n");
        assert_eq!((middle.text(), middle.comments_lost()), (expected.as_str(), None));
        let first = edited(LIST, |document| document.insert_item(&list, 0, "x").unwrap());
        assert!(first.text().starts_with("list:                # what it is\n- x\n- a: 1"), "{}", first.text());
        let end = edited(LIST, |document| document.insert_item(&list, 9, "x: 1").unwrap());
        assert_eq!(end.text(), LIST.replace("- c: 2\n", "- c: 2\n- x: 1\n"));
    }

    #[test]
    fn flow_style_stays_flow_style() {
        let text = "a: { list: [1, 2], empty: {}, none: [] } # c\n";
        let a = Path::of("a");
        let edited = edited(text, |document| {
            document.insert_item(&a.then("list"), 1, "x: y").unwrap();
            document.insert_item(&a.then("none"), 0, "z").unwrap();
            document.insert_key(&a.then("empty"), "k", Spot::End, "v").unwrap();
            document.insert_key(&a, "more", Spot::End, "- 1").unwrap();
            document.remove(&a.then("list"), &[]).unwrap();
        });
        assert_eq!(edited.text(), "a: { more: [1], empty: {k: v}, none: [z] } # c\n");
        assert_eq!(edited.comments_lost(), None);
    }

    #[test]
    fn keys_are_put_in_and_taken_out_with_their_comments() {
        let text = "# file\n\n# about a\na: 1\nb:      # bee\n  - c: 1\n    # gone\n    d:\n      e: 2 # e\n    f: 3\n";
        let item = Path::of("b").then(0);
        let edited = edited(text, |document| {
            document.remove(&item.then("d"), &["# gone"]).unwrap();
            document.insert_key(&Path::default(), "z", Spot::Before("a"), "# zed\n- y: 1").unwrap();
            document.insert_key(&item, "g", Spot::End, "# gee\nh: 1").unwrap();
            document.set(&item.then("f"), "x: y").unwrap();
        });
        let expected = "# file\n\n# zed\nz:\n- y: 1\n# about a\na: 1\nb:      # bee\n  - c: 1\n    f: \"x: y\"\n    # gee\n    g:\n      h: 1\n";
        assert_eq!((edited.text(), edited.comments_lost()), (expected, None));
    }

    /// Whatever is put in where, taking it out gives the same bytes; a comment above it that is not its own stays.
    #[test]
    fn taking_out_is_the_inverse_of_putting_in() {
        for text in [
            LIST,
            "list: [1, {a: b}, 'x'] # flow\nz: 1\n",
            "list: [1,\n  2, # one\n  3  # two\n] # flow\nz: 1\n",
            "list: [ ]\n",
            "list:\n- a\n# own\n- b",
            "list:\r\n  - a\r\n  - b",
            "{\"list\": [1, 2]}",
            "{\n  \"list\": [\n    1,\n    2\n  ]\n}\n",
        ] {
            for at in 0..3 {
                let list = Path::of("list");
                let mut document = Document::parse(text).unwrap();
                let index = at.min(list.get(document.value()).and_then(Value::as_array).map_or(0, Vec::len));
                document.insert_item(&list, at, "# ours\nx: 1\ny: [2]").unwrap();
                document.insert_key(&Path::default(), "new", Spot::Before("list"), "# ours\nk: v").unwrap();
                assert_ne!(document.text(), text);
                document.remove(&Path::of("new"), &["# ours"]).unwrap();
                document.remove(&list.then(index), &["# ours"]).unwrap();
                assert_eq!((document.text(), document.comments_lost()), (text, None), "{at}");
            }
        }
    }

    #[test]
    fn a_block_of_text_is_replaced_and_what_follows_stays() {
        let text = "a:\n  value: |\n    { \"x\": 1 }\n  # about the next\n  b: 'it''s'\nc: 1\n";
        let edited = edited(text, |document| {
            document.set(&Path::of("a.value"), "{\n  \"y\": 2\n}\n").unwrap();
            document.set(&Path::of("a.b"), "{\"z\": 1}").unwrap();
        });
        let expected = "a:\n  value: |\n    {\n      \"y\": 2\n    }\n  # about the next\n  b: '{\"z\": 1}'\nc: 1\n";
        assert_eq!((edited.text(), edited.comments_lost()), (expected, None));
    }

    /// Whatever is put in where, the text is edited in place, and every comment stays.
    #[test]
    fn every_style_of_list_and_value_is_edited_in_place() {
        let lists = [
            "k:\n- a: 1 # one\n# two\n- b\n# end\nz: 1\n",
            "k:\n  - a: 1 # one\n  # two\n  - b\n# end\nz: 1\n",
            "k: # of lists\n- - x # deep\n  - y\n- - z\n# end\n",
            "k:\n-\n  # first\n  a: 1\n- # second\n  b: 2\nz: 1\n",
            "k:\n- # first\n  a: 1\n- |\n  text\n\n\n# end\nz: 1\n",
            "k:\n\n# above\n- > # folded\n  a\n  b\n- -1\n",
            "k: [1, {a: b}, 'x'] # flow\nz: 1\n",
            "k: [1,\n  2, # one\n  2  # two\n] # flow\nz: 1\n",
            "k: &anchor\n- 1 # one\n- 2\n",
            "k: &anchor # anchored\n\n  - &item\n    a: 1 # one\n  - 2\n",
            "k: &anchor [1] # one\n",
            "k:\n- &item\n  a: &map { b: 1 } # one\n- 2\n",
            "k:\n-   a: 1\n    b: |\n\n      text\n    # end of a\n-   c: 1\n",
            "k:\r\n- a: 1 # one\r\n- b\r\nz: 1\r\n",
        ];
        let count = |text: &str| text.matches('#').count();
        for text in lists {
            for at in 0..3 {
                let edited = edited(text, |document| {
                    document.insert_item(&Path::of("k"), at, "# new\nx: 1\ny: [2]").unwrap();
                });
                assert_eq!(edited.comments_lost(), None, "{at} in\n{text}");
                let flow = text.contains("[1");
                assert_eq!(count(edited.text()), count(text) + usize::from(!flow), "{at}: {}", edited.text());
            }
        }
        for text in [
            "k: # none\nz: 1\n",
            "k: 1 # one\nz: 1\n",
            "k: | # json\n  {\n    }\n# end\n",
            "k: |-\n\n  x # no comment\n\n  y\n\n# end\nz: 1",
            "k: >2 # two\n   x\nz: 1",
            "k: 'it''s' # quoted",
            "k: \"a\\\n  b\" # two lines\nz: 1\n",
            "k: plain\n  in two lines\n# end\nz: 1\n",
            "k: &anchor x # anchored\nz: 1\n",
            "{ k: 1, # one\n  z: 2 }\n",
        ] {
            for new in ["x", "two\nlines\n", "a: #b"] {
                let edited = edited(text, |document| document.set(&Path::of("k"), new).unwrap());
                assert_eq!(edited.comments_lost(), None, "{new:?} in\n{text}");
                assert_eq!(edited.value()["k"], new, "{text}");
                assert!(
                    text.lines().filter(|line| line.contains("# ")).all(|line| {
                        line.contains("no comment")
                        // The comment of a block's header goes with the block.
                        || !new.ends_with('\n') && (line.starts_with("k: |") || line.starts_with("k: >"))
                        || edited.text().contains(line.split_once("# ").unwrap().1)
                    }),
                    "{}",
                    edited.text()
                );
            }
        }
    }

    #[test]
    fn what_an_anchor_and_its_aliases_share_is_edited_once() {
        let text = "a: &x # comment\n- k: 1 # one\nb: *x\nc: { d: *x }\n";
        for list in ["a", "b", "c.d"] {
            let mut document = Document::parse(text).unwrap();
            let list = Path::of(list);
            document.insert_item(&list, 1, "2").unwrap();
            document.insert_key(&list.then(0), "l", Spot::End, "x").unwrap();
            let shared = json!([{"k": 1, "l": "x"}, 2]);
            assert_eq!(document.value(), &json!({"a": shared, "b": shared, "c": {"d": shared}}));
            assert_eq!(document.text(), text.replace("# one\n", "# one\n  l: x\n- 2\n"));
            document.remove(&list.then(0).then("l"), &[]).unwrap();
            document.remove(&list.then(1), &[]).unwrap();
            assert_eq!((document.text(), document.comments_lost()), (text, None));
        }
    }

    #[test]
    fn a_value_that_is_shared_is_changed_in_one_place_by_writing_the_text_anew() {
        let text = "a: &x 1 # comment\nb: *x\n";
        for (key, expected) in [("a", json!({"a": 2, "b": 1})), ("b", json!({"a": 1, "b": 2}))] {
            let edited = edited(text, |document| document.set(&Path::of(key), 2).unwrap());
            assert_eq!(edited.value(), &expected);
            assert!(edited.comments_lost().is_some() && !edited.text().contains('#'), "{}", edited.text());
        }
    }

    #[test]
    fn json_stays_json_with_its_indentation() {
        let text = "{\n    \"a\": [\n        1\n    ]\n}\n";
        let pretty = edited(text, |document| document.insert_item(&Path::of("a"), 0, "b: 2").unwrap());
        assert_eq!(
            pretty.text(),
            "{\n    \"a\": [\n        {\n            \"b\": 2\n        },\n        1\n    ]\n}\n"
        );
        let line = edited("{\"a\": 1}", |document| document.insert_key(&Path::default(), "b", Spot::End, "x").unwrap());
        assert_eq!(line.text(), "{\"b\": \"x\", \"a\": 1}");
    }
}
