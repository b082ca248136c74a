//! The bearer token of a call.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Longest token that is shown: what a controller looks at.
const TOKEN_BYTES_MAX: u64 = 4 << 10;

/// Where a token is.
#[derive(Clone)]
pub(crate) enum Token {
    /// Here.
    Text(String),
    /// In this file. It is read for each call: whoever renews it replaces it.
    File(PathBuf),
}

/// Puts a token, if there is one, on each call.
#[derive(Clone)]
pub(crate) struct Bearer(pub(crate) Option<Token>);

impl Token {
    fn read(&self) -> Result<String, Status> {
        let text = match self {
            Self::Text(text) => text.clone(),
            Self::File(path) => {
                let failed = |cause: io::Error| {
                    Status::failed_precondition(format!(
                        "failed to read the token in {}: {cause}",
                        path.display()
                    ))
                };
                let mut text = String::new();
                // One byte more than it may have shows that it has more.
                let mut file = File::open(path).map_err(failed)?.take(TOKEN_BYTES_MAX + 1);
                file.read_to_string(&mut text).map_err(failed)?;
                text
            }
        };
        let token = text.trim();
        if token.is_empty() || token.len() as u64 > TOKEN_BYTES_MAX {
            let bytes = token.len();
            return Err(Status::failed_precondition(format!(
                "a token of {bytes} bytes can't be one: expected 1 to {TOKEN_BYTES_MAX}"
            )));
        }
        Ok(token.to_owned())
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let Some(token) = &self.0 else {
            return Ok(request);
        };
        let value = format!("Bearer {}", token.read()?);
        let mut value = AsciiMetadataValue::try_from(value)
            .map_err(|_| Status::failed_precondition("the token has letters that no token has"))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(token: Token) -> Result<String, Status> {
        let request = Bearer(Some(token)).call(Request::new(()))?;
        let value = request.metadata().get("authorization").unwrap();
        Ok(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_file_is_read_for_each_call() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let file = || shown(Token::File(path.clone()));
        assert!(file().unwrap_err().message().contains("failed to read"));
        for text in ["one", "two\n"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(file().unwrap(), format!("Bearer {}", text.trim()));
        }
        for text in [String::new(), "a".repeat(5000), "a\nb".to_owned()] {
            std::fs::write(&path, text).unwrap();
            assert!(file().is_err());
        }
        assert_eq!(shown(Token::Text("three".to_owned())).unwrap(), "Bearer three");
    }
}
