//! Environment, command and arguments of a container, as Kubernetes makes them. Pure.

use model::Kind;
use proto::v1::{Container, EnvVarSource, Pod};

use crate::configs::{Configs, NotText};
use crate::image::ImageConfig;

/// Why a container's configuration is not to be had (yet); in the words that Kubernetes has for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum EnvError {
    #[error("{} \"{name}\" not found", .kind.singular())]
    NotFound { kind: Kind, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        kind: Kind,
        key: String,
        namespace: String,
        name: String,
    },
    #[error("key {key} in {kind} {namespace}/{name} is no text, as a variable has to be")]
    NotText {
        kind: Kind,
        key: String,
        namespace: String,
        name: String,
    },
    #[error("fieldPath `{path}` is not supported")]
    Field { path: String },
    #[error("no command specified: neither the container nor its image names a program")]
    NoCommand,
}

/// What variables may refer to.
pub(super) struct Sources<'a> {
    pub(super) pod: &'a Pod,
    pub(super) configs: &'a Configs,
    pub(super) host_ip: String,
    pub(super) pod_ip: String,
    pub(super) node_name: &'a str,
}

/// The environment, and keys of ConfigMaps and Secrets that cannot be variables.
#[derive(Debug, Default)]
pub(super) struct Environment {
    /// In order; each name once.
    variables: Vec<(String, String)>,
    /// `NAMESPACE/NAME: key`
    pub(super) skipped: Vec<String>,
}

impl Environment {
    fn set(&mut self, name: &str, value: String) {
        match self.variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.variables.push((name.to_owned(), value)),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.variables
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// NAME=VALUE.
    pub(super) fn lines(&self) -> Vec<String> {
        self.variables
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }
}

/// Variables of the container alone: what `$(NAME)` may refer to.
fn own(container: &Container, sources: &Sources<'_>) -> Result<Environment, EnvError> {
    let mut environment = Environment::default();
    let namespace = sources
        .pod
        .metadata
        .as_ref()
        .map(|meta| meta.namespace.as_str())
        .unwrap_or_default();
    for from in &container.env_from {
        let map = from.config_map_ref.as_ref();
        let map = map.map(|source| (Kind::ConfigMap, &source.name, source.optional));
        let secret = from.secret_ref.as_ref();
        let secret = secret.map(|source| (Kind::Secret, &source.name, source.optional));
        let Some((kind, name, optional)) = map.or(secret) else {
            continue;
        };
        let place = format!("{namespace}/{name}");
        let Some(content) = sources.configs.content(kind, &place) else {
            if optional == Some(true) {
                continue;
            }
            let name = name.clone();
            return Err(EnvError::NotFound { kind, name });
        };
        for key in content.variables() {
            let name = format!("{}{key}", from.prefix);
            match content.variable(key) {
                Some(Ok(value)) if model::name::env(&name).is_ok() => {
                    environment.set(&name, value.to_owned())
                }
                _ => environment.skipped.push(format!("{place}: {key}")),
            }
        }
    }
    for variable in &container.env {
        let value = match &variable.value_from {
            None => Some(expand(&variable.value, |name| environment.get(name))),
            Some(source) => referred(source, namespace, sources)?,
        };
        if let Some(value) = value {
            environment.set(&variable.name, value);
        }
    }
    Ok(environment)
}

fn referred(
    source: &EnvVarSource,
    namespace: &str,
    sources: &Sources<'_>,
) -> Result<Option<String>, EnvError> {
    if let Some(field) = &source.field_ref {
        return self::field(&field.field_path, sources).map(Some);
    }
    let map = source.config_map_key_ref.as_ref();
    let map = map.map(|it| (Kind::ConfigMap, &it.name, &it.key, it.optional));
    let secret = source.secret_key_ref.as_ref();
    let secret = secret.map(|it| (Kind::Secret, &it.name, &it.key, it.optional));
    let Some((kind, name, key, optional)) = map.or(secret) else {
        return Ok(None);
    };
    let optional = optional == Some(true);
    let Some(content) = sources.configs.content(kind, &format!("{namespace}/{name}")) else {
        return match optional {
            true => Ok(None),
            false => Err(EnvError::NotFound {
                kind,
                name: name.clone(),
            }),
        };
    };
    let (key, namespace, name) = (key.clone(), namespace.to_owned(), name.clone());
    match content.variable(&key) {
        Some(Ok(value)) => Ok(Some(value.to_owned())),
        None if optional => Ok(None),
        None => Err(EnvError::NoKey {
            kind,
            key,
            namespace,
            name,
        }),
        Some(Err(NotText)) => Err(EnvError::NotText {
            kind,
            key,
            namespace,
            name,
        }),
    }
}

fn field(path: &str, sources: &Sources<'_>) -> Result<String, EnvError> {
    let meta = sources.pod.metadata.clone().unwrap_or_default();
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    Ok(match path {
        "metadata.name" => meta.name,
        "metadata.namespace" => meta.namespace,
        "metadata.uid" => meta.uid,
        "spec.nodeName" => sources.node_name.to_owned(),
        "spec.serviceAccountName" => {
            let spec = sources.pod.spec.as_ref();
            // Who was told of the pod by an older controller was told of none.
            match spec.map_or("", |spec| spec.service_account_name.as_str()) {
                "" => model::default::SERVICE_ACCOUNT.to_owned(),
                name => name.to_owned(),
            }
        }
        "status.hostIP" | "status.hostIPs" => sources.host_ip.clone(),
        "status.podIP" | "status.podIPs" => sources.pod_ip.clone(),
        _ => {
            if let Some(key) = subscript("metadata.labels['") {
                meta.labels.get(key).cloned().unwrap_or_default()
            } else if let Some(key) = subscript("metadata.annotations['") {
                meta.annotations.get(key).cloned().unwrap_or_default()
            } else {
                return Err(EnvError::Field {
                    path: path.to_owned(),
                });
            }
        }
    })
}

/// Program with its arguments, and the environment: the image's, the host name, the container's own over these.
pub(super) fn process(
    container: &Container,
    image: &ImageConfig,
    hostname: &str,
    sources: &Sources<'_>,
) -> Result<(Vec<String>, Environment), EnvError> {
    let own = own(container, sources)?;
    let words = |list: &[String]| -> Vec<String> {
        list.iter()
            .map(|word| expand(word, |name| own.get(name)))
            .collect()
    };
    // Kubernetes, "Define a Command and Arguments for a Container": a command takes the place of the image's entry point
    // and arguments; arguments alone take that of the image's arguments.
    let mut line = words(&container.command);
    if line.is_empty() {
        line = image.entrypoint.clone().unwrap_or_default();
        if container.args.is_empty() {
            line.extend(image.cmd.clone().unwrap_or_default());
        }
    }
    line.extend(words(&container.args));
    if line.first().is_none_or(String::is_empty) {
        return Err(EnvError::NoCommand);
    }
    let mut all = Environment::default();
    all.set("PATH", runtime::defaults::PATH.to_owned());
    all.set("HOSTNAME", hostname.to_owned());
    for variable in image.env.iter().flatten() {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        all.set(name, value.to_owned());
    }
    for (name, value) in own.variables {
        all.set(&name, value);
    }
    all.skipped = own.skipped;
    Ok((line, all))
}

/// `$(NAME)` becomes the variable's value, `$$` a dollar sign; what names no variable stays (Kubernetes,
/// third_party/forked/golang/expansion).
fn expand<'a>(text: &str, get: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match get(name) {
                Some(value) => expanded.push_str(value),
                None => {
                    expanded.push_str("$(");
                    expanded.push_str(name);
                    expanded.push(')');
                }
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{
        ConfigMap, ConfigMapEnvSource, ConfigMapKeySelector, EnvFromSource, EnvVar, ObjectFieldSelector,
        ObjectMeta, Secret, SecretEnvSource, SecretKeySelector,
    };

    use crate::ledger::Change;

    fn pod() -> Pod {
        Pod {
            metadata: Some(ObjectMeta {
                name: "web".into(),
                namespace: "shop".into(),
                uid: "u1".into(),
                labels: [("app".to_owned(), "front".to_owned())].into(),
                ..ObjectMeta::default()
            }),
            ..Pod::default()
        }
    }

    fn configs() -> Configs {
        let meta = |name: &str| {
            Some(ObjectMeta {
                name: name.into(),
                namespace: "shop".into(),
                ..ObjectMeta::default()
            })
        };
        let map = ConfigMap {
            metadata: meta("settings"),
            data: [("colour", "green"), ("bad=key", "x")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..ConfigMap::default()
        };
        let secret = Secret {
            metadata: meta("login"),
            data: [
                ("user", &b"admin"[..]),
                ("password", b"hunter2"),
                ("key", &[0xff, 0xfe]),
                ("nul", b"a\0b"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_vec()))
            .into(),
            ..Secret::default()
        };
        let change = Change {
            config_maps: vec![map],
            secrets: vec![secret],
            ..Change::default()
        };
        Configs::default().after(&change).unwrap()
    }

    fn plain(name: &str, value: &str) -> EnvVar {
        EnvVar {
            name: name.into(),
            value: value.into(),
            value_from: None,
        }
    }

    fn from(name: &str, config_map_key_ref: Option<ConfigMapKeySelector>, path: &str) -> EnvVar {
        EnvVar {
            name: name.into(),
            value: String::new(),
            value_from: Some(EnvVarSource {
                field_ref: config_map_key_ref.is_none().then(|| ObjectFieldSelector {
                    api_version: "v1".into(),
                    field_path: path.into(),
                }),
                config_map_key_ref,
                secret_key_ref: None,
            }),
        }
    }

    fn key(name: &str, key: &str, optional: bool) -> Option<ConfigMapKeySelector> {
        Some(ConfigMapKeySelector {
            name: name.into(),
            key: key.into(),
            optional: Some(optional),
        })
    }

    fn run(container: &Container, image: &ImageConfig) -> Result<(Vec<String>, Vec<String>), EnvError> {
        let (pod, configs) = (pod(), configs());
        let sources = Sources {
            pod: &pod,
            configs: &configs,
            host_ip: "10.0.0.1".into(),
            pod_ip: "10.244.0.2".into(),
            node_name: "n1",
        };
        process(container, image, "web", &sources).map(|(line, env)| (line, env.lines()))
    }

    #[test]
    fn command_and_args_replace_what_kubernetes_says() {
        let image = ImageConfig {
            entrypoint: Some(vec!["/entry".into()]),
            cmd: Some(vec!["default".into()]),
            ..ImageConfig::default()
        };
        for (command, args, line) in [
            (&[][..], &[][..], &["/entry", "default"][..]),
            (&[], &["a"], &["/entry", "a"]),
            (&["sh"], &[], &["sh"]),
            (&["sh"], &["-c", "$(X)"], &["sh", "-c", "$(X)"]),
        ] {
            let container = Container {
                command: command.iter().map(|word| (*word).to_owned()).collect(),
                args: args.iter().map(|word| (*word).to_owned()).collect(),
                ..Container::default()
            };
            assert_eq!(run(&container, &image).unwrap().0, line);
        }
        let nothing = run(&Container::default(), &ImageConfig::default());
        assert_eq!(nothing.unwrap_err(), EnvError::NoCommand);
    }

    #[test]
    fn variables_come_from_all_their_sources_and_later_ones_win() {
        let container = Container {
            command: vec!["echo".into(), "$(COLOUR)/$(GREETING)/$(NONE)".into()],
            env_from: vec![EnvFromSource {
                prefix: "P_".into(),
                config_map_ref: Some(ConfigMapEnvSource {
                    name: "settings".into(),
                    optional: None,
                }),
                secret_ref: None,
            }],
            env: vec![
                from("COLOUR", key("settings", "colour", false), ""),
                plain("GREETING", "hello $(COLOUR) $(LATER) $$(COLOUR)"),
                plain("LATER", "x"),
                plain("PATH", "/only"),
                from("APP", None, "metadata.labels['app']"),
                from("IP", None, "status.podIP"),
                from("GONE", key("settings", "absent", true), ""),
            ],
            ..Container::default()
        };
        let image = ImageConfig {
            env: Some(vec!["PATH=/image".into(), "LANG=C".into()]),
            ..ImageConfig::default()
        };
        let (line, env) = run(&container, &image).unwrap();
        assert_eq!(line[1], "green/hello green $(LATER) $(COLOUR)/$(NONE)");
        for expected in [
            "PATH=/only",
            "HOSTNAME=web",
            "LANG=C",
            "P_colour=green",
            "COLOUR=green",
            "GREETING=hello green $(LATER) $(COLOUR)",
            "APP=front",
            "IP=10.244.0.2",
        ] {
            assert!(env.iter().any(|line| line == expected), "{expected} in {env:?}");
        }
        assert!(!env.iter().any(|line| line.starts_with("GONE")));
        assert_eq!(env.iter().filter(|line| line.starts_with("PATH=")).count(), 1);
    }

    #[test]
    fn what_is_missing_is_named() {
        let with = |selector| Container {
            command: vec!["x".into()],
            env: vec![from("A", selector, "")],
            ..Container::default()
        };
        let message = |selector| {
            run(&with(selector), &ImageConfig::default())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            message(key("absent", "k", false)),
            "configmap \"absent\" not found"
        );
        assert_eq!(
            message(key("settings", "k", false)),
            "couldn't find key k in ConfigMap shop/settings"
        );
    }

    #[test]
    fn expansion_is_kubernetes_own() {
        let get = |name: &str| match name {
            "A" => Some("1"),
            "B" => Some("$(A)"),
            _ => None,
        };
        for (text, expanded) in [
            ("$(A)", "1"),
            ("$(B)", "$(A)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(C)", "$(C)"),
            ("$A ${A} $", "$A ${A} $"),
            ("$(A", "$(A"),
            ("a$(A)b$(A)", "a1b1"),
        ] {
            assert_eq!(expand(text, get), expanded, "{text}");
        }
    }

    #[test]
    fn secrets_become_variables_where_they_are_text() {
        let secret = |name: &str, key: &str, optional: bool| EnvVar {
            name: "X".into(),
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(SecretKeySelector {
                    name: name.into(),
                    key: key.into(),
                    optional: Some(optional),
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        };
        let container = |env: Vec<EnvVar>| Container {
            command: vec!["sh".into(), "$(X)".into()],
            env,
            ..Container::default()
        };
        let image = ImageConfig::default();
        let (line, env) = run(&container(vec![secret("login", "password", false)]), &image).unwrap();
        assert_eq!(line, ["sh", "hunter2"]);
        assert!(env.contains(&"X=hunter2".to_owned()), "{env:?}");
        for (name, key, optional, told) in [
            ("nope", "user", false, "secret \"nope\" not found"),
            (
                "login",
                "nope",
                false,
                "couldn't find key nope in Secret shop/login",
            ),
            (
                "login",
                "key",
                true,
                "key key in Secret shop/login is no text, as a variable has to be",
            ),
            (
                "login",
                "nul",
                false,
                "key nul in Secret shop/login is no text, as a variable has to be",
            ),
        ] {
            let refused = run(&container(vec![secret(name, key, optional)]), &image).unwrap_err();
            assert_eq!(refused.to_string(), told);
        }
        for (name, key) in [("nope", "user"), ("login", "nope")] {
            let (_, env) = run(&container(vec![secret(name, key, true)]), &image).unwrap();
            assert!(!env.iter().any(|line| line.starts_with("X=")), "{env:?}");
        }
        let whole = Container {
            env_from: vec![EnvFromSource {
                prefix: "S_".into(),
                secret_ref: Some(SecretEnvSource {
                    name: "login".into(),
                    optional: None,
                }),
                ..EnvFromSource::default()
            }],
            ..container(Vec::new())
        };
        let (_, env) = run(&whole, &image).unwrap();
        let ours: Vec<&String> = env.iter().filter(|line| line.starts_with("S_")).collect();
        assert_eq!(ours, ["S_password=hunter2", "S_user=admin"]);
    }
}
