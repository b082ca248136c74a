//! Selectors: labels (`app=web,tier in (a,b),!old`) and fields (`status.phase=Running`).

use std::collections::BTreeMap;
use std::fmt;

use proto::v1::{LabelSelector, Object};
use serde_json::Value;

use crate::{Kind, name, schema, write};

/// Longest text of a selector: far above what a command line holds in practice.
const TEXT_MAX: usize = 64 * 1024;

/// Messages that are one text in JSON.
const SCALARS: [&str; 3] = [
    "bulkhead.v1.IntOrString",
    "bulkhead.v1.Quantity",
    "google.protobuf.Timestamp",
];

/// A text or message that is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct SelectorError {
    /// What is wrong.
    pub reason: String,
}

fn refused(reason: impl Into<String>) -> SelectorError {
    SelectorError {
        reason: reason.into(),
    }
}

/// One requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    /// Also true where the label is absent, as in Kubernetes.
    NotIn(Vec<String>),
    Exists,
    Absent,
}

/// Which labels are meant; every requirement must hold. Without any, everything is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    requirements: Vec<Requirement>,
}

impl Labels {
    /// Reads `a=b,c==d,e!=f,g in (x,y),h notin (z),i,!j`; empty means everything.
    pub fn parse(text: &str) -> Result<Labels, SelectorError> {
        if text.len() > TEXT_MAX {
            return Err(refused(format!("a selector has at most {TEXT_MAX} bytes")));
        }
        let mut requirements = Vec::new();
        for part in split(text)? {
            requirements.push(requirement(part)?);
        }
        Ok(Labels { requirements })
    }

    /// From a workload's selector. An absent or empty one means everything, as in Kubernetes' API; `validate` refuses it
    /// where that would be a mistake.
    pub fn from_selector(selector: &LabelSelector) -> Result<Labels, SelectorError> {
        let mut requirements: Vec<Requirement> = selector
            .match_labels
            .iter()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                test: Test::In(vec![value.clone()]),
            })
            .collect();
        for expression in &selector.match_expressions {
            let values = expression.values.clone();
            let test = match (expression.operator.as_str(), values.is_empty()) {
                ("In", false) => Test::In(values),
                ("NotIn", false) => Test::NotIn(values),
                ("Exists", true) => Test::Exists,
                ("DoesNotExist", true) => Test::Absent,
                ("In" | "NotIn", true) => return Err(refused("In and NotIn need values")),
                ("Exists" | "DoesNotExist", false) => {
                    return Err(refused("Exists and DoesNotExist take no values"));
                }
                (other, _) => {
                    return Err(refused(format!(
                        "unknown operator `{other}`: In, NotIn, Exists or DoesNotExist"
                    )));
                }
            };
            requirements.push(Requirement {
                key: expression.key.clone(),
                test,
            });
        }
        Ok(Labels { requirements })
    }

    /// Whether it means everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether these labels are meant.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.test {
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
            }
        })
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (index, Requirement { key, test }) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match test {
                Test::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Test::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Test::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Test::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Test::Exists => f.write_str(key)?,
                Test::Absent => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

/// Cuts at commas outside of parentheses.
fn split(text: &str) -> Result<Vec<&str>, SelectorError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (index, c) in text.char_indices() {
        match c {
            '(' if inside => return Err(refused("`(` inside of `(`")),
            '(' => inside = true,
            ')' if !inside => return Err(refused("`)` without `(`")),
            ')' => inside = false,
            ',' if !inside => {
                parts.push(text[start..index].trim());
                start = index + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(refused("`(` without `)`"));
    }
    parts.push(text[start..].trim());
    Ok(parts)
}

fn requirement(part: &str) -> Result<Requirement, SelectorError> {
    let checked = |key: &str, test: Test| {
        name::label_key(key).map_err(|reason| refused(format!("label key: {reason}")))?;
        if let Test::In(values) | Test::NotIn(values) = &test {
            for value in values {
                name::label_value(value).map_err(|reason| refused(format!("label value: {reason}")))?;
            }
        }
        Ok(Requirement {
            key: key.to_owned(),
            test,
        })
    };
    if part.is_empty() {
        return Err(refused("an empty requirement: two commas, or one at the end"));
    }
    if let Some(key) = part.strip_prefix('!') {
        return checked(key.trim(), Test::Absent);
    }
    if let Some((left, values)) = part.strip_suffix(')').and_then(|part| part.split_once('(')) {
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let mut words = left.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => checked(key, Test::In(values)),
            (Some(key), Some("notin"), None) => checked(key, Test::NotIn(values)),
            _ => Err(refused(format!(
                "`{}`: before `(` there must be a key and `in` or `notin`",
                left.trim()
            ))),
        };
    }
    for (sign, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((key, value)) = part.split_once(sign) {
            let value = vec![value.trim().to_owned()];
            return checked(
                key.trim(),
                if equal {
                    Test::In(value)
                } else {
                    Test::NotIn(value)
                },
            );
        }
    }
    checked(part, Test::Exists)
}

/// Which objects are meant by their fields: `metadata.name=x,status.phase!=Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// Path, whether equal, value.
    terms: Vec<(Vec<String>, bool, String)>,
}

impl Fields {
    /// Reads `path=value`, `path==value` and `path!=value`, joined by commas.
    pub fn parse(text: &str) -> Result<Fields, SelectorError> {
        if text.len() > TEXT_MAX {
            return Err(refused(format!("a selector has at most {TEXT_MAX} bytes")));
        }
        let mut terms = Vec::new();
        for part in text.split(',').map(str::trim).filter(|_| !text.trim().is_empty()) {
            let (path, equal, value) = [("!=", false), ("==", true), ("=", true)]
                .iter()
                .find_map(|(sign, equal)| part.split_once(sign).map(|(path, value)| (path, *equal, value)))
                .ok_or_else(|| refused(format!("`{part}` is not of the form path=value or path!=value")))?;
            let path: Vec<String> = path.trim().split('.').map(str::to_owned).collect();
            if path.iter().any(String::is_empty) {
                return Err(refused(format!("`{part}` has no valid path")));
            }
            terms.push((path, equal, value.trim().to_owned()));
        }
        Ok(Fields { terms })
    }

    /// Whether objects of this kind have these fields, as single values: else a misspelled path would mean nothing, or
    /// everything.
    pub fn fits(&self, kind: Kind) -> Result<(), SelectorError> {
        self.terms.iter().try_for_each(|(path, ..)| {
            let mut message = schema::message(&kind.message());
            for (step, name) in path.iter().enumerate() {
                let known = message
                    .as_ref()
                    .and_then(|message| message.get_field_by_name(name));
                let Some(field) = known else {
                    let names = message.iter().flat_map(|message| message.fields());
                    let names: Vec<String> = names.map(|field| field.name().to_owned()).collect();
                    let hint =
                        schema::hint(schema::nearest(name, names.iter().map(String::as_str)).as_deref());
                    let path = schema::shown(&path.join("."));
                    return Err(refused(format!("a {kind} has no field `{path}`{hint}")));
                };
                let inner = field.kind().as_message().cloned();
                // The end of a map's path is a key.
                if field.is_map() && step + 2 == path.len() {
                    return Ok(());
                }
                let single = !field.is_list() && !field.is_map();
                let scalar = inner
                    .as_ref()
                    .is_none_or(|inner| SCALARS.contains(&inner.full_name()));
                if step + 1 == path.len() && !(single && scalar) || step + 1 < path.len() && !single {
                    let path = schema::shown(&path.join("."));
                    return Err(refused(format!("`{path}` of a {kind} is not a single value")));
                }
                message = inner.filter(|_| !scalar);
            }
            Ok(())
        })
    }

    /// Whether it means everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The one name that it asks for, if it does.
    pub fn name(&self) -> Option<&str> {
        let named = |(path, equal, _): &&(Vec<String>, bool, String)| *equal && *path == ["metadata", "name"];
        self.terms.iter().find(named).map(|(_, _, name)| name.as_str())
    }

    /// Whether this object is meant. An absent field is the empty text.
    pub fn matches(&self, object: &Object) -> bool {
        if self.terms.is_empty() {
            return true;
        }
        let meta = crate::object::meta(object);
        // The usual fields without making JSON of a whole object.
        let mut tree = None;
        self.terms.iter().all(|(path, equal, wanted)| {
            let found = match path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
                ["metadata", "name"] => meta.name == *wanted,
                ["metadata", "namespace"] => meta.namespace == *wanted,
                ["metadata", "uid"] => meta.uid == *wanted,
                path => text_at(tree.get_or_insert_with(|| write::json(object)), path) == *wanted,
            };
            found == *equal
        })
    }
}

fn text_at(value: &Value, path: &[&str]) -> String {
    let found = path.iter().try_fold(value, |value, name| value.get(*name));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(flag)) => flag.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object;
    use proto::v1::{ObjectMeta, Pod, PodSpec};

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn every_form_is_understood() {
        let web = labels(&[("app", "web"), ("tier", "a")]);
        for (text, hit) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=b", true),
            ("app in (web, db)", true),
            ("app notin (db)", true),
            ("tier", true),
            ("!tier", false),
            ("!old,missing!=x", true),
            ("app=db", false),
            ("app in (web),tier in (b,c)", false),
        ] {
            let selector = Labels::parse(text).unwrap();
            assert_eq!(selector.matches(&web), hit, "{text}");
            assert_eq!(Labels::parse(&selector.to_string()), Ok(selector), "{text}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "app=web,",
            "app in web",
            "app in (",
            "in (a)",
            "a b",
            "=x",
            "app=a b",
            "app>1",
            "((a))",
            "a)",
        ] {
            assert!(Labels::parse(text).is_err(), "{text}");
        }
        assert!(Fields::parse("metadata.name").is_err());
    }

    #[test]
    fn a_field_that_the_kind_does_not_have_is_refused() {
        let told = |kind, text: &str| Fields::parse(text).unwrap().fits(kind).unwrap_err().to_string();
        for (kind, text) in [
            (Kind::Pod, ""),
            (
                Kind::Pod,
                "metadata.name=x,spec.nodeName!=n1,status.phase=Running",
            ),
            (Kind::Pod, "metadata.creationTimestamp=x,metadata.labels.app=web"),
            (Kind::Event, "involvedObject.name=x"),
            (Kind::Secret, "type=Opaque"),
        ] {
            assert_eq!(Fields::parse(text).unwrap().fits(kind), Ok(()), "{text}");
        }
        assert_eq!(
            told(Kind::Pod, "spec.nodename=n1"),
            "a Pod has no field `spec.nodename`; did you mean `nodeName`?"
        );
        assert!(told(Kind::ConfigMap, "status.phase=x").contains("no field"));
        for text in [
            "spec.containers=x",
            "spec.containers.name=x",
            "spec=x",
            "metadata.labels=x",
        ] {
            assert!(told(Kind::Pod, text).contains("not a single value"), "{text}");
        }
    }

    #[test]
    fn fields_are_looked_up_by_path() {
        let pod = object::from(Pod {
            metadata: Some(ObjectMeta {
                name: "web".to_owned(),
                ..Default::default()
            }),
            spec: Some(PodSpec {
                node_name: "n1".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        });
        for (text, hit) in [
            ("", true),
            ("metadata.name=web,spec.nodeName=n1", true),
            ("spec.nodeName!=n1", false),
            ("status.phase=", true),
        ] {
            assert_eq!(Fields::parse(text).unwrap().matches(&pod), hit, "{text}");
        }
    }
}
