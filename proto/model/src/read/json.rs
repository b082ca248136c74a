//! JSON values one after another without `---`, as `jq` prints them: Kubernetes' reader takes them, a YAML parser does not.

use serde::de::IgnoredAny;
use serde_json::Deserializer;

use super::{Position, end_of};

/// The text's values, each with the place where it begins; the text as it is when it is anything but several JSON objects.
pub(super) fn values(text: &str) -> Vec<(Position, &str)> {
    let start = Position { line: 1, column: 1 };
    several(text).unwrap_or_else(|| vec![(start, text)])
}

fn several(text: &str) -> Option<Vec<(Position, &str)>> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let mut values = Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let mut parts = Vec::new();
    let mut at = Position { line: 1, column: 1 };
    let mut begin = 0;
    while let Some(value) = values.next() {
        // What is no JSON may be YAML: the parser tells.
        value.ok()?;
        let end = values.byte_offset();
        let part = &text[begin..end];
        parts.push((at, part));
        let behind = end_of(part);
        at = match behind.line {
            1 => Position {
                line: at.line,
                column: at.column + behind.column - 1,
            },
            lines => Position {
                line: at.line + lines - 1,
                column: behind.column,
            },
        };
        begin = end;
    }
    (parts.len() > 1).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_values_know_their_places() {
        let parts = values("{\"a\": 1} {\"b\":\n2}{}\n");
        let places: Vec<(u32, u32, &str)> = parts
            .iter()
            .map(|(at, part)| (at.line, at.column, *part))
            .collect();
        assert_eq!(
            places,
            [(1, 1, "{\"a\": 1}"), (1, 9, " {\"b\":\n2}"), (2, 3, "{}")]
        );
    }

    #[test]
    fn what_is_not_json_stays_one_text() {
        for text in [
            "{a: 1}\n---\n{b: 2}\n",
            "{\"a\": 1}\n---\n{\"b\": 2}\n",
            "{}",
            "a: 1",
            "",
            "{{ x }}",
        ] {
            assert_eq!(values(text).len(), 1, "{text}");
        }
    }
}
