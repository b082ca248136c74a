//! From the parser's events to trees that know their places, one a document.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use granit_parser::{ErrorKind, Event, Marker, Options, Parser, ScalarStyle, ScanError};

use super::scalar::{self, Plain};
use super::{DEPTH_MAX, NODES_MAX, Position, REFUSALS_MAX};

/// A value and where it begins. Shared where an alias repeats it.
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: Value,
    /// Levels below and with this one: bounded also where aliases stack up, so that no recursion over a tree is deep.
    height: usize,
}

pub(super) enum Value {
    /// `plain`: not quoted and no block, so that `true` and `5` are no texts.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Rc<Node>>),
    Map(Vec<Entry>),
}

pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Position,
    pub(super) value: Rc<Node>,
}

impl Node {
    /// Whether it says nothing: `null`, `~`, or nothing behind the colon.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// In words, for messages.
    pub(super) fn what(&self) -> &'static str {
        match &self.value {
            Value::Scalar { .. } => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// A collection whose end has not come yet.
enum Open {
    List {
        at: Position,
        anchor: usize,
        items: Vec<Rc<Node>>,
        height: usize,
    },
    Map {
        at: Position,
        anchor: usize,
        entries: Vec<Entry>,
        key: Option<(String, Position)>,
        seen: HashSet<String>,
        height: usize,
    },
}

/// Every document that could be parsed; what could not is refused and the next document is read. Empty ones are left out.
/// `origin`: where in the file the text begins. `nodes`: values of the file so far, see [`NODES_MAX`].
pub(super) fn documents(
    text: &str,
    origin: Position,
    nodes: &mut usize,
    refuse: &mut dyn FnMut(Position, String),
) -> Vec<Rc<Node>> {
    let position = |marker: &Marker| moved(position(marker), origin);
    let mut errors = 0;
    let mut syntax = |error: &ScanError| {
        errors += 1;
        // Looking for the line costs the text's length: for those that are told.
        syntax(error, if errors <= REFUSALS_MAX { text } else { "" })
    };
    let mut options = Options::default();
    options.emit_comments = false;
    options.block_nesting_limit = DEPTH_MAX;
    options.flow_nesting_limit = DEPTH_MAX;
    let mut parser = Parser::new_from_str_with_options(text, options);
    let mut documents = Vec::new();
    let mut builder = Builder {
        nodes: *nodes,
        ..Builder::default()
    };
    loop {
        *nodes = builder.nodes;
        let step = match parser.next_event() {
            None => return documents,
            Some(Ok((Event::StreamEnd, _))) => return documents,
            Some(Ok((Event::DocumentStart(..), _))) => {
                builder = Builder {
                    nodes: builder.nodes,
                    ..Builder::default()
                };
                Ok(())
            }
            Some(Ok((Event::DocumentEnd, _))) => {
                if let Some(root) = builder
                    .root
                    .take()
                    .filter(|root| !builder.broken && !root.is_null())
                {
                    documents.push(root);
                }
                Ok(())
            }
            Some(Ok((event, span))) => builder.event(event, position(&span.start), refuse),
            Some(Err(error)) => {
                refuse(position(error.marker()), syntax(&error));
                Err(Fatal::Document)
            }
        };
        match step {
            Ok(()) => {}
            Err(Fatal::File) => return documents,
            Err(Fatal::Document) => {
                builder.broken = true;
                builder.root = None;
                match parser.proceed_next_document() {
                    Ok(true) => {}
                    Ok(false) => return documents,
                    Err(error) => {
                        refuse(position(error.marker()), syntax(&error));
                        return documents;
                    }
                }
            }
        }
    }
}

/// What ends the reading of a document or a file.
enum Fatal {
    Document,
    File,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    root: Option<Rc<Node>>,
    /// Something was refused: the tree is not what was meant.
    broken: bool,
    nodes: usize,
}

impl Builder {
    fn event(
        &mut self,
        event: Event,
        at: Position,
        refuse: &mut dyn FnMut(Position, String),
    ) -> Result<(), Fatal> {
        if let Some(tag) = event.tag() {
            self.broken = true;
            refuse(
                at,
                format!(
                    "tags are not supported: remove `{}`; quotes make a text",
                    tag.original()
                ),
            );
        }
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            refuse(at, format!("more than {NODES_MAX} values; split the file"));
            return Err(Fatal::File);
        }
        match event {
            Event::Scalar(text, style, anchor, _) => {
                if self.wants_key() {
                    return self.key(text.into_owned(), style, at, refuse);
                }
                let value = Value::Scalar {
                    text: text.into_owned(),
                    plain: style == ScalarStyle::Plain,
                };
                self.put(Node { at, value, height: 1 }, anchor, refuse)
            }
            Event::SequenceStart(_, anchor, _) => {
                self.complex_key(at, refuse)?;
                self.push(
                    Open::List {
                        at,
                        anchor,
                        items: Vec::new(),
                        height: 0,
                    },
                    at,
                    refuse,
                )
            }
            Event::MappingStart(_, anchor, _) => {
                self.complex_key(at, refuse)?;
                let open = Open::Map {
                    at,
                    anchor,
                    entries: Vec::new(),
                    key: None,
                    seen: HashSet::new(),
                    height: 0,
                };
                self.push(open, at, refuse)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let (node, anchor) = match self.open.pop() {
                    Some(Open::List {
                        at,
                        anchor,
                        items,
                        height,
                    }) => (
                        Node {
                            at,
                            value: Value::List(items),
                            height: height + 1,
                        },
                        anchor,
                    ),
                    Some(Open::Map {
                        at,
                        anchor,
                        entries,
                        height,
                        ..
                    }) => (
                        Node {
                            at,
                            value: Value::Map(entries),
                            height: height + 1,
                        },
                        anchor,
                    ),
                    // The parser pairs starts and ends.
                    None => return Err(Fatal::Document),
                };
                self.put(node, anchor, refuse)
            }
            Event::Alias(id) => {
                if self.wants_key() {
                    refuse(at, "an alias cannot be a key".to_owned());
                    return Err(Fatal::Document);
                }
                match self.anchors.get(&id).cloned() {
                    Some(node) => self.attach(node, at, refuse),
                    None => {
                        refuse(at, "the alias stands inside of what it repeats".to_owned());
                        Err(Fatal::Document)
                    }
                }
            }
            _ => Ok(()),
        }
    }

    fn push(
        &mut self,
        open: Open,
        at: Position,
        refuse: &mut dyn FnMut(Position, String),
    ) -> Result<(), Fatal> {
        if self.open.len() >= DEPTH_MAX {
            refuse(at, format!("nested deeper than {DEPTH_MAX} levels"));
            return Err(Fatal::Document);
        }
        self.open.push(open);
        Ok(())
    }

    fn wants_key(&self) -> bool {
        matches!(self.open.last(), Some(Open::Map { key: None, .. }))
    }

    fn complex_key(&self, at: Position, refuse: &mut dyn FnMut(Position, String)) -> Result<(), Fatal> {
        if self.wants_key() {
            // `image: {{ .Values.image }}` is how an unrendered template looks to a parser.
            refuse(
                at,
                "a key must be a name, not a list or a mapping; is this a template that was not rendered?"
                    .to_owned(),
            );
            return Err(Fatal::Document);
        }
        Ok(())
    }

    fn key(
        &mut self,
        text: String,
        style: ScalarStyle,
        at: Position,
        refuse: &mut dyn FnMut(Position, String),
    ) -> Result<(), Fatal> {
        let Some(Open::Map { key, seen, .. }) = self.open.last_mut() else {
            return Ok(());
        };
        let plain = style == ScalarStyle::Plain;
        if plain && text == "<<" {
            self.broken = true;
            refuse(
                at,
                "merge keys (`<<`) are not supported: write the fields out".to_owned(),
            );
        } else if let Some(taken_for) = plain.then(|| taken_for(&text)).flatten() {
            self.broken = true;
            let shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
            refuse(
                at,
                format!("the key `{shown}` must be quoted: YAML takes it for {taken_for}"),
            );
        } else if !seen.insert(text.clone()) {
            self.broken = true;
            refuse(at, format!("duplicate key `{}`", text.escape_debug()));
        }
        *key = Some((text, at));
        Ok(())
    }

    fn put(
        &mut self,
        node: Node,
        anchor: usize,
        refuse: &mut dyn FnMut(Position, String),
    ) -> Result<(), Fatal> {
        let at = node.at;
        let node = Rc::new(node);
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.attach(node, at, refuse)
    }

    fn attach(
        &mut self,
        node: Rc<Node>,
        at: Position,
        refuse: &mut dyn FnMut(Position, String),
    ) -> Result<(), Fatal> {
        if self.open.len() + node.height > DEPTH_MAX {
            refuse(at, format!("nested deeper than {DEPTH_MAX} levels"));
            return Err(Fatal::Document);
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, height, .. }) => {
                *height = (*height).max(node.height);
                items.push(node);
            }
            Some(Open::Map {
                entries, key, height, ..
            }) => {
                if let Some((name, at)) = key.take() {
                    *height = (*height).max(node.height);
                    entries.push(Entry {
                        key: name,
                        at,
                        value: node,
                    });
                }
            }
        }
        Ok(())
    }
}

/// What a plain key is to a reader that would change it: Kubernetes' reads `1.0` as `1` and `y` as `true`.
fn taken_for(key: &str) -> Option<&'static str> {
    match scalar::plain(key) {
        Plain::Text => None,
        Plain::Number if scalar::is_canonical(key) => None,
        Plain::Number => Some("a number"),
        Plain::Null => Some("nothing"),
        Plain::Boolean | Plain::OldBoolean => Some("a boolean"),
    }
}

/// A place in a text, as a place in the file that the text is a part of.
fn moved(at: Position, origin: Position) -> Position {
    Position {
        line: at.line.saturating_add(origin.line - 1),
        column: match at.line {
            1 => at.column.saturating_add(origin.column - 1),
            _ => at.column,
        },
    }
}

fn position(marker: &Marker) -> Position {
    let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Position {
        line: narrow(marker.line()),
        column: narrow(marker.col() + 1),
    }
}

fn syntax(error: &ScanError, text: &str) -> String {
    let line = text.lines().nth(error.marker().line().saturating_sub(1));
    // The whole line: the parser stumbles over what stands inside of the braces.
    if line.is_some_and(|line| line.contains("{{")) {
        return "not valid YAML; is this a template that was not rendered?".to_owned();
    }
    match error.kind() {
        ErrorKind::TabNotAllowed | ErrorKind::TabInBlockIndentation => {
            "a tab cannot indent YAML: use spaces".to_owned()
        }
        ErrorKind::RecursionLimitExceeded => format!("nested deeper than {DEPTH_MAX} levels"),
        ErrorKind::ExpectedDocumentStart => {
            "not valid YAML: something follows the end of the document; `---` separates documents".to_owned()
        }
        ErrorKind::UnknownAnchor => "an alias to an anchor that is not there".to_owned(),
        _ => format!("not valid YAML: {}", error.info()),
    }
}
