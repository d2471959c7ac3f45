//! Edits: each changes the value, and the text in the few lines where it must.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use super::{Document, Format, Kind, Node, emit};
use crate::path::{Path, Step};

/// Where in a mapping a new key goes.
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
        let value = document.value.get("x").cloned().unwrap_or_default();
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
        let mut value = self.value.clone();
        let items =
            list.get_mut(&mut value).and_then(Value::as_array_mut).with_context(|| format!("no list at {list}"))?;
        let at = at.min(items.len());
        items.insert(at, snippet.value.clone());
        self.apply(value, |document| document.text_with_item(list, at, &snippet))
    }

    /// Puts a new key into a mapping.
    ///
    /// # Errors
    /// If there is no mapping, the key is there, or the snippet is no YAML.
    pub fn insert_key(&mut self, map: &Path, key: &str, spot: Spot<'_>, snippet: &str) -> Result<()> {
        let snippet = Snippet::parse(snippet)?;
        let mut value = self.value.clone();
        let entries =
            map.get_mut(&mut value).and_then(Value::as_object_mut).with_context(|| format!("no mapping at {map}"))?;
        if entries.contains_key(key) {
            bail!("{map} has a key {key} already");
        }
        match spot_of(entries, spot) {
            Some(index) => entries.shift_insert(index, key.to_owned(), snippet.value.clone()),
            None => entries.insert(key.to_owned(), snippet.value.clone()),
        };
        self.apply(value, |document| document.text_with_key(map, key, spot, &snippet))
    }

    /// Replaces a scalar, or anything by a scalar.
    ///
    /// # Errors
    /// If nothing stands there.
    pub fn set(&mut self, path: &Path, new: impl Into<Value>) -> Result<()> {
        let new = new.into();
        let mut value = self.value.clone();
        *path.get_mut(&mut value).with_context(|| format!("nothing at {path}"))? = new.clone();
        self.apply(value, |document| document.text_with_value(path, &new))
    }

    /// Removes a key with its value, and the comment lines right above it.
    ///
    /// # Errors
    /// If it isn't there.
    pub fn remove(&mut self, path: &Path) -> Result<()> {
        let (parent, Step::Key(key)) = path.split_last().context("the root can't be removed")? else {
            bail!("{path} is no key");
        };
        let mut value = self.value.clone();
        let entries = parent.get_mut(&mut value).and_then(Value::as_object_mut);
        entries.and_then(|entries| entries.shift_remove(key)).with_context(|| format!("nothing at {path}"))?;
        self.apply(value, |document| document.text_without(&parent, key))
    }

    /// The source of a key's value, to be put in elsewhere: with the comments in it and right above the key.
    pub fn source(&self, path: &Path) -> String {
        self.source_in_text(path).unwrap_or_else(|| emit::yaml(path.get(&self.value).unwrap_or(&Value::Null)))
    }

    /// Changes the value, and the text if it can be changed so that it says the same; else writes the text anew.
    fn apply(&mut self, value: Value, edit: impl Fn(&Self) -> Result<String>) -> Result<()> {
        if self.format == Format::Json {
            let text = render_json(&self.text, &value)?;
            *self = Self::read(text, Format::Json)?;
            return Ok(());
        }
        let edited = edit(self).and_then(|text| Self::read(text, Format::Yaml));
        let lost = self.comments_lost.take();
        *self = match edited {
            Ok(document) if document.value == value => Self { comments_lost: lost, ..document },
            other => {
                let reason = other.map_or_else(
                    |error| format!("{error:#}"),
                    |_| "an alias, or a style that can't be edited in place".to_owned(),
                );
                let text = emit::yaml(&value) + "\n";
                Self { comments_lost: lost.or(Some(reason)), ..Self::read(text, Format::Yaml)? }
            }
        };
        Ok(())
    }

    fn text_with_item(&self, list: &Path, at: usize, snippet: &Snippet<'_>) -> Result<String> {
        let node = self.node(list)?;
        let Kind::List(items) = &node.kind else { bail!("no list") };
        if node.flow {
            let json = flow(&snippet.value);
            return match (items.get(at), items.last()) {
                (Some(item), _) => self.spliced(item.start, item.start, &format!("{json}, ")),
                (None, Some(last)) => self.spliced(last.end, last.end, &format!(", {json}")),
                (None, None) => self.spliced(node.start, node.end, &format!("[{json}]")),
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
        let named = |wanted: &str| entries.iter().find(|(key, _)| key.is_named(wanted));
        let (_, last) = match spot {
            Spot::After(key) => named(key).or(entries.last()),
            Spot::End | Spot::Before(_) => entries.last(),
        }
        .map_or((None, None), |(key, value)| (Some(key), Some(value)));
        if node.flow {
            let entry = format!("{}: {}", flow_key(key), flow(&snippet.value));
            return match last {
                Some(last) => self.spliced(last.end, last.end, &format!(", {entry}")),
                None => self.spliced(node.start, node.end, &format!("{{ {entry} }}")),
            };
        }
        let column = node.place.column - 1;
        let text = snippet.as_entry(&flow_key(key), column);
        if let Spot::Before(next) = spot
            && let Some((next, _)) = named(next)
        {
            let line = self.own_line(next.start)?;
            let start = self.above_comments(line, column);
            return self.spliced(start, start, &text);
        }
        self.spliced_behind(last.context("an empty block mapping")?.end, &text)
    }

    fn text_with_value(&self, path: &Path, new: &Value) -> Result<String> {
        let node = self.node(path)?;
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

    fn text_without(&self, map: &Path, key: &str) -> Result<String> {
        let node = self.node(map)?;
        let Kind::Map(entries) = &node.kind else { bail!("no mapping") };
        let at = entries.iter().position(|(name, _)| name.is_named(key)).context("no such key")?;
        let (name, value) = entries.get(at).context("no such key")?;
        let next = entries.get(at + 1);
        if node.flow {
            return match (at.checked_sub(1).and_then(|before| entries.get(before)), next) {
                (Some((_, before)), _) => self.spliced(before.end, value.end, ""),
                (None, Some((next, _))) => self.spliced(name.start, next.start, ""),
                (None, None) => self.spliced(node.start, node.end, "{}"),
            };
        }
        match (self.own_line(name.start), next) {
            (Ok(line), _) => {
                let start = self.above_comments(line, node.place.column - 1);
                self.spliced(start, self.behind_line(value.end), "")
            }
            // Behind the dash of a list item: what follows moves there.
            (Err(_), Some((next, _))) => self.spliced(name.start, next.start, ""),
            (Err(error), None) => Err(error),
        }
    }

    fn source_in_text(&self, path: &Path) -> Option<String> {
        let (parent, step) = path.split_last()?;
        let parent = self.node(&parent).ok()?;
        let (Some(key), value) = parent.child(step)? else { return None };
        if parent.flow || value.alias || self.format == Format::Json {
            return None;
        }
        let body = self.text.get(value.start..value.end)?;
        if body.contains(['*', '&']) {
            return None; // an anchor, or an alias of one that may not be known there
        }
        let column = parent.place.column - 1;
        let comments = match self.own_line(key.start) {
            Ok(line) => self.text.get(self.above_comments(line, column)..line)?.lines().map(str::trim_start).collect(),
            Err(_) => Vec::new(),
        };
        let key_line_end = self.behind_line(key.end);
        let body: Vec<String> = if value.start < key_line_end {
            vec![flow(&value.value())]
        } else {
            let text = self.text.get(key_line_end..self.behind_line(value.end))?;
            let shallow = text.lines().filter(|line| !line.trim().is_empty()).map(indentation).min()?;
            text.lines().map(|line| line.get(shallow..).unwrap_or_default().to_owned()).collect()
        };
        Some(comments.into_iter().map(str::to_owned).chain(body).collect::<Vec<_>>().join("\n"))
    }

    // === places in the text ===

    fn spliced(&self, start: usize, end: usize, new: &str) -> Result<String> {
        let (before, after) = (self.text.get(..start), self.text.get(end..));
        Ok([before.context("not in the text")?, new, after.context("not in the text")?].concat())
    }

    /// With whole lines put in behind the line that holds the byte before `end`.
    fn spliced_behind(&self, end: usize, lines: &str) -> Result<String> {
        let at = self.behind_line(end);
        let needs_break = at == self.text.len() && !self.text.ends_with('\n');
        self.spliced(at, at, &if needs_break { format!("\n{lines}") } else { lines.to_owned() })
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
        matches!(&self.kind, Kind::Scalar(name) if !name.is_null() && super::name_of(name) == wanted)
    }
}

pub(super) fn indentation(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn spot_of(entries: &serde_json::Map<String, Value>, spot: Spot<'_>) -> Option<usize> {
    let position = |wanted: &str| entries.keys().position(|key| key == wanted);
    match spot {
        Spot::End => None,
        Spot::Before(key) => position(key),
        Spot::After(key) => position(key).map(|at| at + 1),
    }
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
    let body = text.trim();
    let ending = if text.ends_with('\n') { "\n" } else { "" };
    if !body.contains('\n') {
        return Ok(value.to_string() + ending);
    }
    let blank = body.lines().find_map(|line| {
        let trimmed = line.trim_start();
        line.get(..line.len() - trimmed.len()).filter(|blank| !blank.is_empty() && !trimmed.is_empty())
    });
    let formatter = serde_json::ser::PrettyFormatter::with_indent(blank.unwrap_or("  ").as_bytes());
    let mut out = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))?;
    Ok(String::from_utf8(out)? + ending)
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
            document.remove(&a.then("list")).unwrap();
        });
        assert_eq!(edited.text(), "a: { empty: { k: v }, none: [z], more: [1] } # c\n");
        assert_eq!(edited.comments_lost(), None);
    }

    #[test]
    fn keys_are_put_in_and_taken_out_with_their_comments() {
        let text = "# file\n\n# about a\na: 1\nb:      # bee\n  - c: 1\n    # gone\n    d:\n      e: 2 # e\n    f: 3\n";
        let item = Path::of("b").then(0);
        let source = Document::parse(text).unwrap().source(&item.then("d"));
        assert_eq!(source, "# gone\ne: 2 # e");
        let edited = edited(text, |document| {
            document.remove(&item.then("d")).unwrap();
            document.remove(&item.then("c")).unwrap();
            document.insert_key(&Path::default(), "z", Spot::Before("a"), "# zed\n- y: 1").unwrap();
            document.insert_key(&item, "g", Spot::End, &source).unwrap();
            document.set(&item.then("f"), "x: y").unwrap();
        });
        let expected = "# file\n\n# zed\nz:\n- y: 1\n# about a\na: 1\nb:      # bee\n  - f: \"x: y\"\n    # gone\n    g:\n      e: 2 # e\n";
        assert_eq!((edited.text(), edited.comments_lost()), (expected, None));
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
    fn where_an_alias_is_in_the_way_the_text_is_written_anew_and_that_is_said() {
        let text = "a: &x # comment\n- 1\nb: *x\n";
        for list in ["a", "b"] {
            let edited = edited(text, |document| document.insert_item(&Path::of(list), 1, "2").unwrap());
            let mut expected = json!({"a": [1], "b": [1]});
            expected[list] = json!([1, 2]);
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
        assert_eq!(line.text(), "{\"a\":1,\"b\":\"x\"}");
    }
}
