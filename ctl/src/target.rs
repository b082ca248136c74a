//! What a person names on the command line: `pod/web-1`, `pods web-1 web-2`, `deploy,po`, a bare pod name.

use model::Kind;
use proto::state::v1::Key;

use crate::error::CtlError;

/// What `get`, `delete` and the like were asked for.
#[derive(Debug, PartialEq)]
pub(crate) enum Targets {
    /// Objects by name.
    Named(Vec<(Kind, String)>),
    /// Whole kinds.
    Kinds(Vec<Kind>),
}

/// A kind by any of its names.
pub(crate) fn kind(text: &str) -> Result<Kind, CtlError> {
    Kind::parse(text).map_err(|error| CtlError::Usage(error.to_string()))
}

/// `KIND`, `KIND,KIND`, `KIND NAME...` or `KIND/NAME...`.
pub(crate) fn parse(words: &[String]) -> Result<Targets, CtlError> {
    let Some(first) = words.first() else {
        return Err(CtlError::Usage("name a kind, or KIND/NAME".to_owned()));
    };
    if first.contains('/') {
        let named = words.iter().map(|word| split(word)).collect::<Result<_, _>>()?;
        return Ok(Targets::Named(named));
    }
    if words.len() == 1 {
        if first == "all" {
            return Ok(Targets::Kinds(vec![
                Kind::Pod,
                Kind::Deployment,
                Kind::ReplicaSet,
            ]));
        }
        return Ok(Targets::Kinds(
            first.split(',').map(kind).collect::<Result<_, _>>()?,
        ));
    }
    let of = kind(first)?;
    let names = words.iter().skip(1).map(|name| match name.contains('/') {
        true => Err(CtlError::Usage(format!(
            "`{name}`: either KIND NAME... or KIND/NAME..., not both"
        ))),
        false => Ok((of, name.clone())),
    });
    Ok(Targets::Named(names.collect::<Result<_, _>>()?))
}

fn split(word: &str) -> Result<(Kind, String), CtlError> {
    match word.split_once('/') {
        Some((of, name)) if !name.is_empty() && !name.contains('/') => Ok((kind(of)?, name.to_owned())),
        _ => Err(CtlError::Usage(format!("`{word}` is not KIND/NAME"))),
    }
}

/// Exactly one object: `KIND/NAME` or `KIND NAME`.
pub(crate) fn one(words: &[String], namespace: &str) -> Result<Key, CtlError> {
    match parse(words)? {
        Targets::Named(named) => match <[_; 1]>::try_from(named) {
            Ok([(kind, name)]) => Ok(key(kind, namespace, name)),
            Err(named) => Err(CtlError::Usage(format!(
                "one object is meant, {} were given",
                named.len()
            ))),
        },
        Targets::Kinds(_) => Err(CtlError::Usage("name one object, as KIND/NAME".to_owned())),
    }
}

/// A pod, with or without its kind in front, or something that has pods.
pub(crate) fn pod_or_workload(word: &str) -> Result<(Kind, String), CtlError> {
    let (kind, name) = match word.contains('/') {
        false => (Kind::Pod, word.to_owned()),
        true => split(word)?,
    };
    match kind {
        Kind::Pod | Kind::Deployment | Kind::ReplicaSet => Ok((kind, name)),
        other => Err(CtlError::Usage(format!(
            "`{word}`: a pod is meant, or what has pods, not a {}",
            other.as_str()
        ))),
    }
}

/// The key of an object; kinds without namespaces get none.
pub(crate) fn key(kind: Kind, namespace: &str, name: String) -> Key {
    let namespace = if kind.namespaced() {
        namespace.to_owned()
    } else {
        String::new()
    };
    Key {
        kind: kind.as_str().to_owned(),
        namespace,
        name,
    }
}

/// A key as people write it.
pub(crate) fn shown(key: &Key) -> String {
    format!("{}/{}", key.kind.to_lowercase(), key.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn both_ways_of_naming_mean_the_same() {
        let expected = Targets::Named(vec![(Kind::Pod, "a".into()), (Kind::Pod, "b".into())]);
        assert_eq!(parse(&words("pods a b")).unwrap(), expected);
        assert_eq!(parse(&words("pod/a po/b")).unwrap(), expected);
        assert_eq!(
            parse(&words("deploy,po")).unwrap(),
            Targets::Kinds(vec![Kind::Deployment, Kind::Pod])
        );
        assert!(parse(&words("pods a/b")).is_err() && parse(&words("pod/a/b")).is_err());
        assert!(parse(&words("nonsense")).is_err());
        assert_eq!(one(&words("node/n1"), "default").unwrap().namespace, "");
    }
}
