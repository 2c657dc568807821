//! Bearer tokens and their roles. Without tokens, every request is allowed.

use std::{fs, future::pending, sync::Arc};

use axum::http::{HeaderMap, Method, header};
use serde::Serialize;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::config::TokenSource;
use crate::http::error::ApiError;

/// The shortest token. Shorter ones can be guessed.
const TOKEN_BYTES_MIN: usize = 16;
/// The longest token.
const TOKEN_BYTES_MAX: usize = 256;

/// What a token permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Appends.
    Append,
    /// Reads of rows, lock, events and metrics.
    Read,
    /// Everything.
    Admin,
}

impl Role {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "append" => Some(Self::Append),
            "read" => Some(Self::Read),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }

    /// The role that a request needs; `None` for public content. Everything unknown needs `Admin`.
    pub(crate) fn needed(method: &Method, path: &str) -> Option<Self> {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        match (method, path) {
            // Lists methods. Browsers send it without a token.
            (&Method::OPTIONS, _) => None,
            (_, "/" | "/livez" | "/readyz" | "/openapi.yaml" | "/docs") if reads => None,
            // The page must load before it can ask for a token, and its files are public.
            _ if reads && (path.starts_with("/docs/") || path.starts_with("/web/")) => None,
            (&Method::POST, "/append" | "/append/batch") => Some(Self::Append),
            _ if reads => Some(Self::Read),
            _ => Some(Self::Admin),
        }
    }
}

struct Token {
    role: Role,
    digest: [u8; 32],
}

impl Token {
    /// Whether the token permits what the role permits.
    fn covers(&self, role: Role) -> bool {
        self.role == role || self.role == Role::Admin
    }
}

/// The first bytes of a token's digest, which tell tokens apart.
fn identity(digest: &[u8; 32]) -> u128 {
    u128::from_le_bytes(digest[..16].try_into().expect("16 bytes"))
}

/// The roles and the identity of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    append: bool,
    read: bool,
    admin: bool,
    /// The first bytes of the token's digest; `None` without a known token.
    pub(crate) token: Option<u128>,
}

impl Caller {
    /// A caller without a known token.
    pub(crate) const NOBODY: Self = Self { append: false, read: false, admin: false, token: None };

    /// All roles of this caller.
    pub(crate) fn roles(self) -> Vec<Role> {
        [Role::Append, Role::Read, Role::Admin].into_iter().filter(|&role| self.may(role)).collect()
    }

    pub(crate) fn may(self, role: Role) -> bool {
        match role {
            Role::Append => self.append,
            Role::Read => self.read,
            Role::Admin => self.admin,
        }
    }
}

/// Why the tokens cannot be used. The messages never contain a token.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The file cannot be read.
    #[error("ROWLOCK_API_TOKENS: cannot read {path}: {source}")]
    File {
        /// The path of the file.
        path: String,
        /// The error of the system.
        source: std::io::Error,
    },
    /// An entry is malformed; the number counts from 1.
    #[error(
        "ROWLOCK_API_TOKENS: entry {0} is not accepted; accepted: role:token, separated by commas (in a file also by line breaks; # at the start of a line or behind white space begins a comment), role one of append, read, admin, token 16 to 256 printable ASCII characters without spaces, commas and quotes; or @file"
    )]
    Entry(usize),
    /// A token can be guessed; the number counts from 1.
    #[error(
        "ROWLOCK_API_TOKENS: the token of entry {0} is shorter than {TOKEN_BYTES_MIN} characters and can be guessed; make one with: openssl rand -hex 32"
    )]
    Short(usize),
    /// There is no entry.
    #[error("ROWLOCK_API_TOKENS: contains no token; unset the variable to allow every request")]
    Empty,
}

/// The tokens that were last read.
pub struct Access {
    source: Option<TokenSource>,
    tokens: watch::Sender<Arc<[Token]>>,
}

impl Access {
    /// Reads the tokens; without a source, every request is allowed.
    ///
    /// # Errors
    /// If the source cannot be read or an entry is malformed.
    pub fn load(source: Option<TokenSource>) -> Result<Self, AccessError> {
        let tokens = source.as_ref().map(read).transpose()?.unwrap_or_default();
        Ok(Self { source, tokens: watch::Sender::new(tokens.into()) })
    }

    /// Whether requests need no token.
    pub fn is_open(&self) -> bool {
        self.source.is_none()
    }

    /// Reads the tokens again. After an error the old tokens stay valid.
    ///
    /// # Errors
    /// As `load`.
    pub fn reload(&self) -> Result<(), AccessError> {
        let Some(source) = &self.source else { return Ok(()) };
        let tokens = read(source)?;
        self.tokens.send_replace(tokens.into());
        Ok(())
    }

    /// Returns when a reload has taken the role from the caller's token; never, if requests need no token.
    pub(crate) async fn revoked(self: Arc<Self>, caller: Caller, role: Role) {
        let Some(token) = caller.token else { return pending().await };
        let has_role = |known: &Token| identity(&known.digest) == token && known.covers(role);
        // Looks at the present tokens first: they may have been reloaded since the request was authorized.
        let mut tokens = self.tokens.subscribe();
        let revoked = tokens.wait_for(|tokens| !tokens.iter().any(has_role)).await;
        revoked.map(drop).expect("the sender lives in self");
    }

    /// The caller that the header `Authorization` identifies.
    ///
    /// # Errors
    /// `Unauthorized`, if the token is unknown.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        if self.is_open() {
            return Ok(Caller { append: true, read: true, admin: true, token: None });
        }
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(Caller::NOBODY) };
        let unknown = || ApiError::Unauthorized { unknown_token: true };
        let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(unknown)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(unknown());
        }
        self.holder(token.trim()).ok_or_else(unknown)
    }

    /// Compares with all tokens in constant time.
    fn holder(&self, token: &str) -> Option<Caller> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let tokens = Arc::clone(&self.tokens.borrow());
        let no = Choice::from(0);
        let [append, read, admin] = tokens.iter().fold([no; 3], |found, known| {
            let same = known.digest.ct_eq(&digest);
            [Role::Append, Role::Read, Role::Admin].map(|role| {
                let covers = Choice::from(u8::from(known.covers(role)));
                found[role as usize] | (same & covers)
            })
        });
        let known: bool = (append | read | admin).into();
        let token = Some(identity(&digest));
        known.then(|| Caller { append: append.into(), read: read.into(), admin: admin.into(), token })
    }
}

fn read(source: &TokenSource) -> Result<Vec<Token>, AccessError> {
    let tokens = match source {
        TokenSource::Text(text) => parse(text.split(','))?,
        TokenSource::File(path) => {
            let file = |source| AccessError::File { path: path.display().to_string(), source };
            let text = fs::read_to_string(path).map_err(file)?;
            parse(text.lines().map(without_comment).flat_map(|line| line.split(',')))?
        }
    };
    if tokens.is_empty() { Err(AccessError::Empty) } else { Ok(tokens) }
}

/// A comment begins with a `#` at the start of a line or behind white space. Any other `#` belongs to a token.
fn without_comment(line: &str) -> &str {
    let begins = |&(at, _): &(usize, &str)| at == 0 || line[..at].ends_with(char::is_whitespace);
    line.match_indices('#').find(begins).map_or(line, |(at, _)| &line[..at])
}

fn parse<'a>(entries: impl Iterator<Item = &'a str>) -> Result<Vec<Token>, AccessError> {
    let entries = entries.map(str::trim).filter(|entry| !entry.is_empty());
    let token = |(at, entry): (usize, &str)| {
        let (role, token) = entry.split_once(':').ok_or(AccessError::Entry(at))?;
        let is_token = |c: char| c.is_ascii_graphic() && !matches!(c, ',' | '"');
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX || !token.chars().all(is_token) {
            return Err(AccessError::Entry(at));
        }
        let role = Role::parse(role).ok_or(AccessError::Entry(at))?;
        if token.len() < TOKEN_BYTES_MIN {
            return Err(AccessError::Short(at));
        }
        Ok(Token { role, digest: Sha256::digest(token).into() })
    };
    (1..).zip(entries).map(token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(tokens: &str) -> Access {
        Access::load(Some(TokenSource::parse(tokens))).expect("tokens")
    }

    #[test]
    fn token_has_its_roles_and_no_others() {
        let access = access(
            "append:the-token-called-one, read:the-token-called-two,admin:the-token-called-three,\
             append:the-token-called-both,read:the-token-called-both",
        );
        let may = |token: &str| {
            access.holder(token).map(|caller| [Role::Append, Role::Read, Role::Admin].map(|role| caller.may(role)))
        };
        assert_eq!(may("the-token-called-one"), Some([true, false, false]));
        assert_eq!(may("the-token-called-two"), Some([false, true, false]));
        assert_eq!(may("the-token-called-three"), Some([true, true, true]));
        assert_eq!(may("the-token-called-both"), Some([true, true, false]));
        for unknown in
            ["", "the-token-called-on", "the-token-called-onee", "The-token-called-one", "the-token-called-one,"]
        {
            assert_eq!(may(unknown), None, "{unknown:?}");
        }
        assert_eq!(may("append:the-token-called-one"), None);
    }

    #[test]
    fn hash_within_a_token_of_a_file_belongs_to_it() {
        for (line, kept) in [
            ("append:pa#ss", "append:pa#ss"),
            ("append:pass#", "append:pass#"),
            ("append:pass # the shop", "append:pass "),
            ("append:pa#ss\t# one # two", "append:pa#ss\t"),
            ("# append:pass", ""),
            ("  # append:pass", "  "),
            ("append:pass", "append:pass"),
        ] {
            assert_eq!(without_comment(line), kept, "{line:?}");
        }
    }

    #[test]
    fn short_token_is_refused_and_not_shown() {
        for (tokens, number) in [
            ("read:sixteen-letters1", None),
            ("read:fifteen-letters", Some(1)),
            ("admin:sixteen-letters1,append:x", Some(2)),
        ] {
            let error = Access::load(Some(TokenSource::parse(tokens))).err();
            match number {
                None => assert!(error.is_none(), "{tokens:?}: {error:?}"),
                Some(number) => {
                    assert!(matches!(error, Some(AccessError::Short(at)) if at == number), "{tokens:?}: {error:?}");
                    let text = error.expect("checked").to_string();
                    assert!(text.contains("16 characters") && !text.contains("fifteen"), "{text}");
                }
            }
        }
    }

    #[test]
    fn malformed_entry_is_named_by_number_and_not_shown() {
        for (tokens, number) in
            [("append:long-enough-token,hush", "2"), ("write:hush", "1"), ("read:", "1"), ("read:hu sh", "1")]
        {
            let error = Access::load(Some(TokenSource::parse(tokens))).err().expect("refused").to_string();
            assert!(error.contains(&format!("entry {number}")) && !error.contains("hush"), "{error}");
        }
        assert!(matches!(Access::load(Some(TokenSource::parse(" , "))), Err(AccessError::Empty)));
        assert!(matches!(Access::load(Some(TokenSource::parse("@/nowhere"))), Err(AccessError::File { .. })));
    }

    #[test]
    fn unknown_path_or_method_needs_admin() {
        let needed = |method, path| Role::needed(&method, path);
        assert_eq!(needed(Method::POST, "/append"), Some(Role::Append));
        assert_eq!(needed(Method::GET, "/rows.csv"), Some(Role::Read));
        assert_eq!(needed(Method::GET, "/lock"), Some(Role::Read));
        assert_eq!(needed(Method::DELETE, "/lock"), Some(Role::Admin));
        assert_eq!(needed(Method::HEAD, "/readyz"), None);
        assert_eq!(needed(Method::POST, "/livez"), Some(Role::Admin));
        assert_eq!(needed(Method::GET, "/docs/index.css"), None);
        assert_eq!(needed(Method::GET, "/docsx"), Some(Role::Read));
        assert_eq!(needed(Method::HEAD, "/web/page.css"), None);
        assert_eq!(needed(Method::GET, "/web"), Some(Role::Read));
        assert_eq!(needed(Method::PUT, "/append"), Some(Role::Admin));
    }
}
