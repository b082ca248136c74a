//! The client's configuration: contexts, each with the members' addresses, the CA, and a client certificate or a token.
//!
//! `$BULKHEAD_CONFIG`, else `~/.config/bulkhead/config.yaml`. `bulkhead-controller init` writes one for the administrator.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bearer::Token;
use crate::error::CtlError;

/// Largest configuration that is read; keys and certificates of dozens of clusters fit many times.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// What shows who calls.
pub(crate) enum Credentials<'a> {
    /// A certificate and its key, PEM.
    Certificate {
        /// The certificate.
        cert: &'a str,
        /// Its key.
        key: &'a str,
    },
    /// A bearer token.
    Token(Token),
}

/// All known clusters and the one that is used without `--context`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Name of the context in use.
    #[serde(rename = "current-context", default)]
    pub(crate) current: String,
    /// Each cluster.
    #[serde(default)]
    pub(crate) contexts: Vec<Context>,
}

/// How to reach one cluster, and as whom: with `cert` and `key`, with `token`, or with `tokenFile`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Context {
    /// Name in `--context`.
    pub(crate) name: String,
    /// HOST:PORT of each member's API.
    pub(crate) endpoints: Vec<String>,
    /// The cluster's CA, PEM.
    pub(crate) ca: String,
    /// The client's certificate, PEM.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) cert: String,
    /// Its key, PEM.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) key: String,
    /// A bearer token, that of a service account.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) token: String,
    /// A file with a token that somebody renews.
    #[serde(rename = "tokenFile", skip_serializing_if = "String::is_empty")]
    pub(crate) token_file: String,
}

impl Context {
    /// As whom calls are made; whoever has two names has none.
    pub(crate) fn credentials(&self) -> Result<Credentials<'_>, CtlError> {
        let refused = |why: &str| {
            Err(CtlError::refused(format!(
                "context {}: {why}: give it either cert and key, or token, or tokenFile",
                self.name
            )))
        };
        let (cert, key) = (self.cert.as_str(), self.key.as_str());
        match (cert, key, self.token.as_str(), self.token_file.as_str()) {
            ("", "", "", "") => refused("it says nobody"),
            ("", "", token, "") => Ok(Credentials::Token(Token::Text(token.to_owned()))),
            // Relative to what? To another directory each time.
            ("", "", "", file) if !Path::new(file).is_absolute() => Err(CtlError::refused(format!(
                "context {}: tokenFile `{file}` is not an absolute path",
                self.name
            ))),
            ("", "", "", file) => Ok(Credentials::Token(Token::File(file.into()))),
            ("", _, "", "") => refused("it has a key and no certificate"),
            (_, "", "", "") => refused("it has a certificate and no key"),
            (cert, key, "", "") => Ok(Credentials::Certificate { cert, key }),
            _ => refused("it says more than one"),
        }
    }
}

/// Where the configuration is: the flag, the environment, the home directory.
pub(crate) fn path(flag: Option<&Path>) -> Result<PathBuf, CtlError> {
    if let Some(path) = flag {
        return Ok(path.to_owned());
    }
    match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        Some(home) => Ok(Path::new(&home).join(".config/bulkhead/config.yaml")),
        None => Err(CtlError::Usage(
            "HOME is not set; give --config FILE or set BULKHEAD_CONFIG".to_owned(),
        )),
    }
}

impl Config {
    /// Reads `path`; a file that is not there is an empty configuration.
    pub(crate) fn read(path: &Path) -> Result<Self, CtlError> {
        let shown = path.display();
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(CtlError::io(format!("failed to read {shown}"))(error)),
            Ok(meta) if meta.len() > CONFIG_BYTES_MAX => {
                return Err(CtlError::refused(format!(
                    "{shown}: larger than {CONFIG_BYTES_MAX} bytes"
                )));
            }
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(path).map_err(CtlError::io(format!("failed to read {shown}")))?;
        serde_saphyr::from_str(&text).map_err(|error| CtlError::refused(format!("{shown}: {error}")))
    }

    /// Replaces the file at once (it holds a private key: mode 0600).
    pub(crate) fn write(&self, path: &Path) -> Result<(), CtlError> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let failed = |source| CtlError::Io {
            what: format!("failed to write {}", path.display()),
            source,
        };
        let text = serde_saphyr::to_string(self).map_err(|error| CtlError::refused(error.to_string()))?;
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory).map_err(failed)?;
        let temporary = path.with_extension("tmp");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed)?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        std::fs::rename(&temporary, path).map_err(failed)
    }

    /// The context named, or the current one.
    pub(crate) fn context(&self, name: Option<&str>, path: &Path) -> Result<&Context, CtlError> {
        let shown = path.display();
        let wanted = name.unwrap_or(&self.current);
        if wanted.is_empty() {
            return Err(CtlError::Usage(format!(
                "no cluster is configured in {shown}; bring one up with `ctl dev up`, or copy admin.yaml from a controller's config directory there"
            )));
        }
        self.contexts
            .iter()
            .find(|context| context.name == wanted)
            .ok_or_else(|| {
                let known: Vec<&str> = self
                    .contexts
                    .iter()
                    .map(|context| context.name.as_str())
                    .collect();
                CtlError::Usage(format!(
                    "no context `{wanted}` in {shown}; there are: {}",
                    known.join(", ")
                ))
            })
    }

    /// Adds a context, or replaces the one of that name, and makes it the current one.
    pub(crate) fn adopt(&mut self, context: Context) {
        self.current.clone_from(&context.name);
        self.contexts.retain(|known| known.name != context.name);
        self.contexts.push(context);
    }

    /// Forgets a context; the first that is left becomes current when it was.
    pub(crate) fn forget(&mut self, name: &str) {
        self.contexts.retain(|known| known.name != name);
        if self.current == name {
            self.current = self
                .contexts
                .first()
                .map_or_else(String::new, |context| context.name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(credentials: &str) -> Result<Context, String> {
        let text = format!("{{contexts: [{{name: c, endpoints: ['a:1'], ca: CA, {credentials}}}]}}");
        let config: Result<Config, _> = serde_saphyr::from_str(&text);
        let config = config.map_err(|error| error.to_string())?;
        Ok(config.contexts[0].clone())
    }

    fn refused(credentials: &str) -> String {
        match context(credentials).unwrap().credentials() {
            Ok(_) => panic!("{credentials} is taken"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_context_says_in_one_way_who_calls() {
        let certificate = context("cert: C, key: K").unwrap();
        assert!(matches!(
            certificate.credentials(),
            Ok(Credentials::Certificate { cert: "C", key: "K" })
        ));
        let token = context("token: t").unwrap();
        assert!(matches!(token.credentials(), Ok(Credentials::Token(Token::Text(text))) if text == "t"));
        let file = context("tokenFile: /run/token").unwrap();
        assert!(matches!(
            file.credentials(),
            Ok(Credentials::Token(Token::File(path))) if path == Path::new("/run/token")
        ));
        for (credentials, why) in [
            ("", "nobody"),
            ("cert: C", "no key"),
            ("key: K", "no certificate"),
            ("cert: C, key: K, token: t", "more than one"),
            ("key: K, token: t", "more than one"),
            ("token: t, tokenFile: /t", "more than one"),
            ("tokenFile: run/token", "not an absolute path"),
        ] {
            let message = refused(credentials);
            assert!(message.contains(why), "{credentials}: {message}");
        }
        assert!(context("tokenfile: /t").is_err(), "an unknown field is taken");
    }

    #[test]
    fn what_a_context_does_not_have_is_not_written() {
        let text = serde_saphyr::to_string(&context("token: t").unwrap()).unwrap();
        assert!(text.contains("token") && !text.contains("cert"), "{text}");
        assert!(!text.contains("tokenFile"), "{text}");
    }
}
