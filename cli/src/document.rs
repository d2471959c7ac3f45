//! A configuration file: its text, what it says, and where.
//!
//! YAML is read as Envoy reads it: what `yes` or `012` means, that a key tagged `!ignore` counts for nothing, that there are no
//! merge keys, and that only the first document counts. What it says can be had in two forms: as it is spelled
//! ([`Document::raw`]), and with protobuf's liberties taken out ([`Document::value`], see [`spelling`]).
//!
//! Edits put text in or take it out and leave every other byte alone, so comments, order and style stay; each is checked by
//! reading the result. What an anchor and its aliases share is edited once, for all of them. A text that can't be edited so is
//! written anew, without its comments, and [`Document::comments_lost`] says so.

mod edit;
mod emit;
pub mod spelling;

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde_json::{Map, Value};

pub use self::{edit::Spot, emit::yaml};
use crate::path::{Path, Step};

/// How deep a file may be nested: as deep as Envoy's own reader goes.
const DEEPEST: usize = 100;

/// How many keys, items and scalars a file may have once its aliases are written out.
const MOST_NODES: usize = 2_000_000;

/// A configuration file.
#[derive(Clone, Debug)]
pub struct Document {
    text: String,
    format: Format,
    raw: Value,
    value: Value,
    /// The line on which a second document begins.
    ignored_from: Option<usize>,
    root: Option<Node>,
    comments_lost: Option<String>,
}

/// What a file is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON, which stays JSON.
    Json,
    /// YAML.
    Yaml,
}

/// A place in a file, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

/// A node of the YAML tree, with the bytes it takes in the text.
#[derive(Clone, Debug)]
struct Node {
    /// Where its anchor and tag begin, if it has any; else as `start`.
    begin: usize,
    start: usize,
    /// Behind its last byte that is no blank.
    end: usize,
    place: Place,
    kind: Kind,
    flow: bool,
}

#[derive(Clone, Debug)]
enum Kind {
    Scalar(Value),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    /// What is written elsewhere.
    Alias(Arc<Node>),
}

impl Document {
    /// Reads YAML or JSON.
    ///
    /// # Errors
    /// If it is neither, or uses what Envoy does not read.
    pub fn parse(text: &str) -> Result<Self> {
        let is_json = text.trim_start().starts_with('{') && serde_json::from_str::<Value>(text).is_ok();
        let format = if is_json { Format::Json } else { Format::Yaml };
        Self::read(text.to_owned(), format)
    }

    fn read(text: String, format: Format) -> Result<Self> {
        let (raw, root, ignored_from) = match format {
            // JSON is YAML but for a few escapes; without a tree, messages have no places and edits write the text anew.
            Format::Json => (serde_json::from_str(&text)?, parse_tree(&text).ok().map(|(root, _)| root), None),
            Format::Yaml => {
                let (root, ignored_from) = parse_tree(&text)?;
                (root.value(), Some(root), ignored_from)
            }
        };
        if depth(&raw) > DEEPEST {
            bail!("nested deeper than {DEEPEST} levels");
        }
        if !raw.is_object() {
            bail!("a mapping is wanted at the top, such as an Envoy bootstrap with `static_resources`");
        }
        Ok(Self { value: spelling::canonical(&raw), text, format, raw, ignored_from, root, comments_lost: None })
    }

    /// The text as it stands now.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it says, in one spelling: snake_case names, lists where lists are wanted.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// What it says, as it is spelled.
    pub fn raw(&self) -> &Value {
        &self.raw
    }

    /// The line from which on Envoy reads nothing: that of a second document.
    pub fn ignored_from(&self) -> Option<usize> {
        self.ignored_from
    }

    /// YAML or JSON.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Why the text had to be written anew, if it had to.
    pub fn comments_lost(&self) -> Option<&str> {
        self.comments_lost.as_deref()
    }

    /// Where a node, or its nearest parent that exists, stands in the text.
    pub fn place(&self, path: &Path) -> Option<Place> {
        let mut node = self.root.as_ref()?;
        let mut place = node.place;
        for step in &path.0 {
            let Some((key, child)) = node.child(step) else { break };
            place = key.map_or(child.place, |key| key.place);
            node = child;
        }
        Some(place)
    }

    /// The node at a path; of an alias the one that it stands for.
    fn node(&self, path: &Path) -> Result<&Node> {
        let root = self.root.as_ref().context("no tree")?;
        path.0.iter().try_fold(root, |node, step| {
            let (_, child) = node.child(step).with_context(|| format!("nothing at {path}"))?;
            Ok(child.written())
        })
    }

    /// The paths to the same text: several, where aliases are.
    pub fn twins(&self, path: &Path) -> Vec<Path> {
        fn descend(path: &mut Path, node: &Node, wanted: (usize, usize), found: &mut Vec<Path>) {
            let node = node.written();
            if (node.start, node.end) == wanted {
                found.push(path.clone());
            }
            let children: Vec<(Step, &Node)> = match &node.kind {
                Kind::List(items) => items.iter().enumerate().map(|(at, item)| (at.into(), item)).collect(),
                Kind::Map(entries) => {
                    entries.iter().filter_map(|(key, value)| Some((Step::Key(key.name()?), value))).collect()
                }
                Kind::Scalar(_) | Kind::Alias(_) => return,
            };
            for (step, child) in children {
                path.0.push(step);
                descend(path, child, wanted, found);
                path.0.pop();
            }
        }
        let mut found = Vec::new();
        // Without an anchor there is no alias.
        if let (true, Some(root), Ok(node)) = (self.text.contains('&'), &self.root, self.node(path)) {
            descend(&mut Path::default(), root, (node.start, node.end), &mut found);
        }
        if found.len() > 1 { found } else { vec![path.clone()] }
    }
}

impl Node {
    /// A key as a JSON name; none of one that is tagged `!ignore`.
    fn name(&self) -> Option<String> {
        match &self.kind {
            Kind::Scalar(Value::Null) | Kind::List(_) | Kind::Map(_) => None,
            Kind::Scalar(name) => Some(name_of(name)),
            Kind::Alias(target) => target.name(),
        }
    }

    /// What an alias stands for; any other node itself.
    fn written(&self) -> &Self {
        match &self.kind {
            Kind::Alias(target) => target,
            _ => self,
        }
    }

    /// How many nodes it is, its own children included.
    fn count(&self) -> usize {
        match &self.kind {
            Kind::Scalar(_) => 1,
            Kind::List(items) => items.iter().map(Self::count).sum::<usize>() + 1,
            Kind::Map(entries) => entries.iter().map(|(_, value)| value.count() + 1).sum::<usize>() + 1,
            Kind::Alias(target) => target.count(),
        }
    }

    /// The child and, in a mapping, its key.
    fn child(&self, step: &Step) -> Option<(Option<&Self>, &Self)> {
        match (&self.kind, step) {
            (Kind::Alias(target), _) => target.child(step),
            (Kind::List(items), Step::Index(index)) => items.get(*index).map(|item| (None, item)),
            // One item may stand for a list of one.
            (_, Step::Index(index)) => (*index == 0).then_some((None, self)),
            (Kind::Map(entries), Step::Key(wanted)) => {
                let named =
                    |is: &dyn Fn(&str) -> bool| entries.iter().find(|(key, _)| key.name().is_some_and(|n| is(&n)));
                let found = named(&|name| name == wanted);
                found.or_else(|| named(&|name| spelling::is_same(name, wanted))).map(|(key, value)| (Some(key), value))
            }
            _ => None,
        }
    }

    fn value(&self) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::List(items) => items.iter().map(Self::value).collect(),
            Kind::Map(entries) => {
                let entries = entries.iter().filter_map(|(key, value)| Some((key.name()?, value.value())));
                Value::Object(entries.collect::<Map<_, _>>())
            }
            Kind::Alias(target) => target.value(),
        }
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(depth).max().unwrap_or(0) + 1,
        Value::Object(entries) => entries.values().map(depth).max().unwrap_or(0) + 1,
        _ => 1,
    }
}

/// A key as a JSON name.
fn name_of(key: &Value) -> String {
    match key {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

// === the YAML tree ===

struct Tree<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    text: &'a str,
    /// The byte at which each character begins; the parser counts characters.
    bytes: Vec<usize>,
    /// What is anchored, with the number of its nodes.
    anchors: HashMap<usize, (Arc<Node>, usize)>,
    depth: usize,
    nodes: usize,
}

/// The first document, and the line on which a second one that isn't empty begins.
fn parse_tree(text: &str) -> Result<(Node, Option<usize>)> {
    let bytes = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let events = Parser::new_from_str(text);
    let mut tree = Tree { events, text, bytes, anchors: HashMap::new(), depth: 0, nodes: 0 };
    let mut root: Option<Node> = None;
    while let Some((event, span)) = tree.next()? {
        match (event, root) {
            (Event::StreamEnd, found) => return found.map(|root| (root, None)).context("the file is empty"),
            (Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing, found) => root = found,
            // Nothing behind a `---` at the end.
            (Event::Scalar(text, ScalarStyle::Plain, 0, None), Some(first)) if text.is_empty() || text == "~" => {
                root = Some(first);
            }
            (_, Some(first)) => return Ok((first, Some(span.start.line()))),
            (event, None) => root = Some(tree.node(event, span)?),
        }
    }
    root.map(|root| (root, None)).context("the file is empty")
}

impl<'a> Tree<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>> {
        match self.events.next_event() {
            None => Ok(None),
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(error)) => {
                bail!("line {}, column {}: {}", error.marker().line(), error.marker().col() + 1, error.info())
            }
        }
    }

    fn byte(&self, character: usize) -> usize {
        self.bytes.get(character).copied().unwrap_or(self.text.len())
    }

    fn node(&mut self, event: Event<'a>, span: Span) -> Result<Node> {
        let line = span.start.line();
        self.count(1, line)?;
        self.depth += 1;
        if self.depth > DEEPEST {
            bail!("line {line}: nested deeper than {DEEPEST} levels");
        }
        let node = self.node_within(event, span);
        self.depth -= 1;
        node
    }

    fn count(&mut self, nodes: usize, line: usize) -> Result<()> {
        self.nodes += nodes;
        if self.nodes > MOST_NODES {
            bail!("line {line}: more than {MOST_NODES} values, those that aliases stand for included");
        }
        Ok(())
    }

    fn node_within(&mut self, event: Event<'a>, span: Span) -> Result<Node> {
        let mut start = self.byte(span.start.index());
        let begin = start;
        let mut place = Place { line: span.start.line(), column: span.start.col() + 1 };
        let mut end = self.trimmed(start, self.byte(span.end.index()));
        let mut flow = false;
        let (anchor, kind) = match event {
            Event::Alias(anchor) => {
                let found = self.anchors.get(&anchor).cloned();
                let (target, nodes) = found.context("an alias of something that is not complete")?;
                self.count(nodes, place.line)?;
                return Ok(Node { begin, start, end, place, flow, kind: Kind::Alias(target) });
            }
            Event::Scalar(text, style, anchor, tag) => {
                match style {
                    ScalarStyle::Literal | ScalarStyle::Folded => start = self.block_header(start).unwrap_or(start),
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
                        end = self.closing_quote(self.behind_properties(start, place).0).unwrap_or(end);
                    }
                    // Of nothing behind `key:` the place is that of the colon.
                    _ if start == end && self.text.get(start..).is_some_and(|rest| rest.starts_with(':')) => {
                        start += 1;
                    }
                    _ => {}
                }
                (anchor, Kind::Scalar(scalar(&text, style, tag.as_deref())))
            }
            Event::SequenceStart(anchor, tag) => {
                if anchor > 0 || tag.is_some() {
                    (start, place) = self.behind_properties(start, place);
                }
                flow = self.text.get(start..).is_some_and(|rest| rest.starts_with('['));
                let mut items = Vec::new();
                loop {
                    let (event, span) = self.next()?.context("the file ends in a list")?;
                    if event == Event::SequenceEnd {
                        end = if flow {
                            self.byte(span.start.index()) + 1 // the span's end is behind the blanks
                        } else {
                            items.last().map_or(end, |last: &Node| last.end)
                        };
                        break;
                    }
                    items.push(self.node(event, span)?);
                }
                if !flow && !self.starts_with_dash(start, items.first()) {
                    // No deeper than its key: then the parser tells the place behind the dash.
                    let line = self.line_start(start);
                    let blanks = self.text.get(line..start).map_or(0, edit::indentation);
                    start = line + blanks;
                    place.column = blanks + 1;
                }
                (anchor, Kind::List(items))
            }
            Event::MappingStart(anchor, tag) => {
                if anchor > 0 || tag.is_some() {
                    (start, place) = self.behind_properties(start, place);
                }
                flow = self.text.get(start..).is_some_and(|rest| rest.starts_with('{'));
                let mut entries: Vec<(Node, Node)> = Vec::new();
                loop {
                    let (event, span) = self.next()?.context("the file ends in a mapping")?;
                    if event == Event::MappingEnd {
                        end = if flow {
                            self.byte(span.start.index()) + 1
                        } else {
                            entries.last().map_or(end, |(_, last)| last.end)
                        };
                        break;
                    }
                    let line = span.start.line();
                    let ignored = matches!(&event, Event::Scalar(_, _, _, Some(tag)) if tag.suffix == "ignore");
                    let mut key = self.node(event, span)?;
                    if ignored {
                        key.kind = Kind::Scalar(Value::Null);
                    }
                    let (event, span) = self.next()?.context("the file ends in a mapping")?;
                    let value = self.node(event, span)?;
                    self.accept_key(&entries, &key, line)?;
                    entries.push((key, value));
                }
                (anchor, Kind::Map(entries))
            }
            other => bail!("line {}: {other:?} is not expected", place.line),
        };
        // The header of a block stands before its text, where the parser begins.
        let node = Node { begin: begin.min(start), start, end: end.max(start), place, kind, flow };
        if anchor > 0 {
            self.anchors.insert(anchor, (Arc::new(node.clone()), node.count()));
        }
        Ok(node)
    }

    fn accept_key(&self, entries: &[(Node, Node)], key: &Node, line: usize) -> Result<()> {
        let Kind::Scalar(name) = &key.written().kind else { bail!("line {line}: a key must be a word") };
        if name == "<<" {
            bail!("line {line}: Envoy does not know merge keys (<<)");
        }
        let twice = |(other, _): &(Node, Node)| matches!(&other.kind, Kind::Scalar(other) if other == name);
        if !name.is_null() && entries.iter().any(twice) {
            bail!("line {line}: the key {name} is there twice");
        }
        Ok(())
    }

    fn line_start(&self, at: usize) -> usize {
        self.text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |found| found + 1)
    }

    /// The place of the node whose anchor or tag begins here.
    fn behind_properties(&self, start: usize, place: Place) -> (usize, Place) {
        let mut rest = self.text.get(start..).unwrap_or_default().trim_start();
        while let Some(first @ ('&' | '!' | '#')) = rest.chars().next() {
            let is_within = |c: char| if first == '#' { c != '\n' } else { !c.is_whitespace() };
            rest = rest.trim_start_matches(is_within).trim_start();
        }
        let at = self.text.len() - rest.len();
        let between = self.text.get(start..at).unwrap_or_default();
        match between.rsplit_once('\n') {
            Some((above, blanks)) => {
                let line = place.line + above.matches('\n').count() + 1;
                (at, Place { line, column: blanks.chars().count() + 1 })
            }
            None => (at, Place { column: place.column + between.chars().count(), ..place }),
        }
    }

    /// Whether a block list's first dash is here, and not that of a list in its first item.
    fn starts_with_dash(&self, start: usize, first: Option<&Node>) -> bool {
        let rest = self.text.get(start..).unwrap_or_default();
        let is_dash = rest.strip_prefix('-').is_some_and(|rest| !rest.starts_with(|c: char| !c.is_whitespace()));
        is_dash && first.is_none_or(|first| first.start > start)
    }

    /// The place behind the quote that ends what this one begins; the parser tells that of the next token.
    fn closing_quote(&self, opening: usize) -> Option<usize> {
        let mut rest = self.text.get(opening..)?.char_indices();
        let (_, quote) = rest.next()?;
        let mut is_escaped = false;
        while let Some((at, c)) = rest.next() {
            match c {
                _ if is_escaped => is_escaped = false,
                '\\' if quote == '"' => is_escaped = true,
                // A doubled quote is one in the text.
                '\'' if quote == c && rest.as_str().starts_with(c) => is_escaped = true,
                _ if c == quote => return Some(opening + at + c.len_utf8()),
                _ => {}
            }
        }
        None
    }

    /// Where the `|` or `>` of the block scalar stands whose text begins at `content`.
    fn block_header(&self, content: usize) -> Option<usize> {
        let end = self.text.get(..content)?.trim_end().len();
        let line_start = self.line_start(end);
        let line = self.text.get(line_start..end)?;
        let found = line.match_indices(['|', '>']).find(|(at, header)| {
            let rest = line.get(at + header.len()..).unwrap_or_default();
            let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '+' || c == '-');
            let is_free = line.get(..*at).is_some_and(|before| before.is_empty() || before.ends_with([' ', '\t']));
            is_free && (rest.is_empty() || rest.starts_with([' ', '\t']) && rest.trim_start().starts_with('#'))
        })?;
        Some(line_start + found.0)
    }

    /// `end` without the blanks before it, which the parser counts to a block scalar.
    fn trimmed(&self, start: usize, end: usize) -> usize {
        self.text.get(start..end).map_or(end, |text| start + text.trim_end().len())
    }
}

/// A scalar as Envoy takes it (`source/common/protobuf/yaml_utility.cc`): plain ones may be a boolean, a whole number or null, all
/// else is text.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    if style != ScalarStyle::Plain || tag.is_some_and(|tag| tag.suffix == "str") {
        return text.into();
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        _ if is_word(text, &["true", "yes", "on", "y"]) => true.into(),
        _ if is_word(text, &["false", "no", "off", "n"]) => false.into(),
        _ => whole_number(text).map_or_else(|| text.into(), Value::from),
    }
}

/// One of the words in lower case, upper case or with a capital.
fn is_word(text: &str, words: &[&str]) -> bool {
    let rest = text.get(1..).unwrap_or_default();
    let is_cased = rest.bytes().all(|c| c.is_ascii_lowercase()) || text.bytes().all(|c| c.is_ascii_uppercase());
    is_cased && words.iter().any(|word| word.eq_ignore_ascii_case(text))
}

/// A number of 32 bits; a longer one stays text, as in protobuf's JSON.
fn whole_number(text: &str) -> Option<i32> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let magnitude = match (digits.strip_prefix("0x"), digits.strip_prefix('0')) {
        (Some(hex), _) => i64::from_str_radix(hex, 16),
        (None, Some(octal)) if !octal.is_empty() => i64::from_str_radix(octal, 8),
        _ => digits.parse(),
    };
    let magnitude = magnitude.ok()?;
    i32::try_from(if negative { -magnitude } else { magnitude }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_means_what_it_means_to_envoy() {
        let text = "!ignore shared: &a { on: 'yes' }\nx: *a\nb: [yes, Off, 012, 0x10, 1.5, ~, '7', 99999999999]\n";
        let document = Document::parse(text).unwrap();
        let expected = json!({"x": {"true": "yes"}, "b": [true, false, 10, 16, "1.5", null, "7", "99999999999"]});
        assert_eq!(document.value(), &expected);
        assert_eq!((document.format(), document.text()), (Format::Yaml, text));
    }

    #[test]
    fn what_envoy_does_not_read_is_refused_with_its_line() {
        for (text, reason) in [
            ("a: &x { b: 1 }\nc:\n  <<: *x\n", "line 3: Envoy does not know merge keys (<<)"),
            ("a: 1\nb: 2\na: 3\n", "line 3: the key \"a\" is there twice"),
            ("- a\n", "a mapping is wanted at the top"),
            ("", "the file is empty"),
            ("a: [1\nb: 2", "line 2"),
        ] {
            let error = Document::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn only_the_first_document_counts() {
        for (text, ignored_from) in [("a: 1\n---\nb: 2\n", Some(3)), ("a: 1\n---\n", None), ("---\na: 1\n...\n", None)]
        {
            let document = Document::parse(text).unwrap();
            assert_eq!((document.value(), document.ignored_from()), (&json!({"a": 1}), ignored_from), "{text}");
        }
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let bomb: String =
            (1..12).map(|at| format!("a{at}: &a{at} [{}]\n", vec![format!("*a{}", at - 1); 9].join(", "))).collect();
        for (text, reason) in [
            (format!("a0: &a0 x\n{bomb}"), "values, those that aliases stand for included"),
            (format!("a: {}", "- ".repeat(10_000)), "line 1"),
            (format!("a:\n{}", "- ".repeat(10_000)), "nested deeper than 100 levels"),
            (format!("a: {}", "[".repeat(10_000)), "line 1"),
            (format!("{{\"a\": {}1{}}}", "[".repeat(120), "]".repeat(120)), "nested deeper than 100 levels"),
        ] {
            let error = format!("{:#}", Document::parse(&text).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn places_are_counted_in_characters_from_one() {
        let document = Document::parse("# é\na:\n- ü: { name: x }\n").unwrap();
        let at = |path: &Path| document.place(path).map(|place| (place.line, place.column));
        let name = Path::of("a").then(0).keys("ü.name");
        assert_eq!((at(&name), at(&Path::of("a.b.c"))), (Some((3, 8)), Some((2, 1))));
        let json = Document::parse("{\n  \"a\": {\"b\": 1}\n}").unwrap();
        assert_eq!((json.format(), json.place(&Path::of("a.b")).map(|place| place.line)), (Format::Json, Some(2)));
    }
}
