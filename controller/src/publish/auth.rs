//! Who calls: a bearer token in; out, the node on which a proxy runs, or another replica.

use std::{collections::HashMap, fs, io, path::PathBuf, sync::Arc, time::SystemTime};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tonic::{Status, metadata::MetadataMap};
use weft_source::BoxFuture;

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The proxy of a node.
    Proxy {
        /// The node's name.
        node: String,
    },
    /// Another replica of the controller.
    Controller {
        /// Its pod's name.
        replica: String,
    },
}

/// Why a caller is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The token is no good.
    Refused(String),
    /// Nobody could be asked: try again.
    Unavailable(String),
}

/// Tells who bears a token.
pub trait Authenticator: Send + Sync {
    /// The bearer, or why it is not let in.
    fn caller<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Caller, Denied>>;
}

/// Authenticates a proxy's call; returns its node.
pub async fn authenticate(
    authenticator: &Arc<dyn Authenticator>,
    metadata: &MetadataMap,
) -> Result<String, Status> {
    match caller(authenticator, metadata).await? {
        Caller::Proxy { node } => Ok(node),
        Caller::Controller { replica } => Err(Status::permission_denied(format!(
            "{replica} is a replica of the controller; this is for proxies"
        ))),
    }
}

/// Authenticates a call by its `authorization` metadata.
pub async fn caller(
    authenticator: &Arc<dyn Authenticator>,
    metadata: &MetadataMap,
) -> Result<Caller, Status> {
    let value = metadata
        .get("authorization")
        .and_then(|value| value.to_str().ok());
    let (scheme, token) = value
        .and_then(|value| value.split_once(' '))
        .unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
        return Err(Status::unauthenticated(
            "the call carries no token; send the metadata \"authorization: Bearer TOKEN\"",
        ));
    }
    let caller = authenticator.caller(token.trim()).await;
    caller.map_err(|denied| match denied {
        Denied::Refused(reason) => Status::unauthenticated(reason),
        Denied::Unavailable(reason) => Status::unavailable(reason),
    })
}

/// A file of lines `token node-name`, read again when it changes. The lab's stand-in for Kubernetes'
/// TokenReview.
pub struct FileTokens {
    path: PathBuf,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    stamp: Option<Stamp>,
    /// By the token's hash, so that a look-up's time says nothing about tokens.
    nodes: HashMap<[u8; 32], String>,
}

/// Tells versions of the file apart.
#[derive(Clone, Copy, PartialEq)]
struct Stamp {
    modified: SystemTime,
    length: u64,
    inode: u64,
}

impl FileTokens {
    /// Reads the file; fails if that is not possible.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let tokens = Self {
            path: path.into(),
            loaded: Mutex::default(),
        };
        tokens.load(&mut tokens.loaded.lock(), true)?;
        Ok(tokens)
    }

    fn look_up(&self, token: &str) -> Option<String> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let mut loaded = self.loaded.lock();
        // A stamp can miss a second change within one tick of the clock: what is not found is looked
        // for in the file itself.
        for force in [false, true] {
            if let Err(error) = self.load(&mut loaded, force) {
                let path = self.path.display();
                tracing::warn!(%path, %error, "the node tokens can't be read; those read before stay valid");
            }
            if let Some(node) = loaded.nodes.get(&digest) {
                return Some(node.clone());
            }
        }
        None
    }

    fn load(&self, loaded: &mut Loaded, force: bool) -> io::Result<()> {
        let metadata = fs::metadata(&self.path)?;
        let stamp = Stamp {
            modified: metadata.modified()?,
            length: metadata.len(),
            inode: std::os::unix::fs::MetadataExt::ino(&metadata),
        };
        if !force && loaded.stamp == Some(stamp) {
            return Ok(());
        }
        let text = fs::read_to_string(&self.path)?;
        loaded.nodes.clear();
        for (index, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match *words {
                [first, ..] if first.starts_with('#') => {}
                [token, node] => {
                    loaded
                        .nodes
                        .insert(Sha256::digest(token).into(), node.to_owned());
                }
                [] => {}
                _ => tracing::warn!(
                    path = %self.path.display(), line = index + 1,
                    "a line of the node tokens is ignored; write \"token node-name\""
                ),
            }
        }
        loaded.stamp = Some(stamp);
        Ok(())
    }
}

impl Authenticator for FileTokens {
    fn caller<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Caller, Denied>> {
        Box::pin(async move {
            let node = self.look_up(token).ok_or_else(|| {
                let path = self.path.display();
                Denied::Refused(format!("the token is not known; it must be in {path}"))
            })?;
            Ok(Caller::Proxy { node })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn node(tokens: &FileTokens, token: &str) -> Option<String> {
        match tokens.caller(token).await {
            Ok(Caller::Proxy { node }) => Some(node),
            _ => None,
        }
    }

    #[tokio::test]
    async fn tokens_follow_their_file() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("tokens");
        assert!(FileTokens::open(&path).is_err());
        fs::write(&path, "# comment\n\nabc node-a\nbroken\n").unwrap();
        let tokens = FileTokens::open(&path).unwrap();
        assert_eq!(node(&tokens, "abc").await.as_deref(), Some("node-a"));
        for unknown in ["ab", "abcd", "broken", "#", ""] {
            assert_eq!(node(&tokens, unknown).await, None, "{unknown}");
        }
        fs::write(&path, "abc node-b\nnew node-c\n").unwrap();
        assert_eq!(node(&tokens, "new").await.as_deref(), Some("node-c"));
        assert_eq!(node(&tokens, "abc").await.as_deref(), Some("node-b"));
        fs::remove_file(&path).unwrap();
        assert_eq!(node(&tokens, "abc").await.as_deref(), Some("node-b"));
    }

    #[tokio::test]
    async fn a_call_needs_a_bearer_token() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("tokens");
        fs::write(&path, "abc node-a").unwrap();
        let tokens: Arc<dyn Authenticator> = Arc::new(FileTokens::open(&path).unwrap());
        for (value, node) in [
            (None, None),
            (Some("abc"), None),
            (Some("Bearer "), None),
            (Some("Basic abc"), None),
            (Some("Bearer wrong"), None),
            (Some("Bearer abc"), Some("node-a")),
            (Some("bearer abc"), Some("node-a")),
        ] {
            let mut metadata = MetadataMap::new();
            if let Some(value) = value {
                metadata.insert("authorization", value.parse().unwrap());
            }
            let result = authenticate(&tokens, &metadata).await;
            assert_eq!(result.as_deref().ok(), node, "{value:?}");
            if let Err(status) = result {
                assert_eq!(status.code(), tonic::Code::Unauthenticated);
            }
        }
    }
}
