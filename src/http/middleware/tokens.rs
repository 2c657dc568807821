//! Bearer tokens and their roles. Without tokens, every request is allowed.

use std::{
    fs,
    sync::{Arc, PoisonError, RwLock},
};

use axum::http::{HeaderMap, Method, header};
use serde::Serialize;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use utoipa::ToSchema;

use crate::config::TokenSource;
use crate::http::error::ApiError;

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
        "ROWLOCK_API_TOKENS: entry {0} is not accepted; accepted: role:token, separated by commas (in a file also by line breaks; # begins a comment), role one of append, read, admin, token 1 to 256 printable ASCII characters without spaces, commas and quotes; or @file"
    )]
    Entry(usize),
    /// There is no entry.
    #[error("ROWLOCK_API_TOKENS: contains no token; unset the variable to allow every request")]
    Empty,
}

/// The tokens that were last read.
pub struct Access {
    source: Option<TokenSource>,
    tokens: RwLock<Arc<[Token]>>,
}

impl Access {
    /// Reads the tokens; without a source, every request is allowed.
    ///
    /// # Errors
    /// If the source cannot be read or an entry is malformed.
    pub fn load(source: Option<TokenSource>) -> Result<Self, AccessError> {
        let tokens = source.as_ref().map(read).transpose()?.unwrap_or_default();
        Ok(Self { source, tokens: RwLock::new(tokens.into()) })
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
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens.into();
        Ok(())
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
        let tokens = Arc::clone(&self.tokens.read().unwrap_or_else(PoisonError::into_inner));
        let no = Choice::from(0);
        let [append, read, admin] = tokens.iter().fold([no; 3], |found, known| {
            let same = known.digest.ct_eq(&digest);
            [Role::Append, Role::Read, Role::Admin].map(|role| {
                let covers = Choice::from(u8::from(known.role == role || known.role == Role::Admin));
                found[role as usize] | (same & covers)
            })
        });
        let known: bool = (append | read | admin).into();
        let start = u128::from_le_bytes(digest[..16].try_into().expect("16 bytes"));
        known.then(|| Caller { append: append.into(), read: read.into(), admin: admin.into(), token: Some(start) })
    }
}

fn read(source: &TokenSource) -> Result<Vec<Token>, AccessError> {
    let tokens = match source {
        TokenSource::Text(text) => parse(text.split(','))?,
        TokenSource::File(path) => {
            let file = |source| AccessError::File { path: path.display().to_string(), source };
            let text = fs::read_to_string(path).map_err(file)?;
            let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
            parse(lines.flat_map(|line| line.split(',')))?
        }
    };
    if tokens.is_empty() { Err(AccessError::Empty) } else { Ok(tokens) }
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
        let access = access("append:one, read:two,admin:three,append:both,read:both");
        let may = |token: &str| {
            access.holder(token).map(|caller| [Role::Append, Role::Read, Role::Admin].map(|role| caller.may(role)))
        };
        assert_eq!(may("one"), Some([true, false, false]));
        assert_eq!(may("two"), Some([false, true, false]));
        assert_eq!(may("three"), Some([true, true, true]));
        assert_eq!(may("both"), Some([true, true, false]));
        for unknown in ["", "on", "onee", "One", "one,", "append:one"] {
            assert_eq!(may(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn malformed_entry_is_named_by_number_and_not_shown() {
        for (tokens, number) in [("append:a,hush", "2"), ("write:hush", "1"), ("read:", "1"), ("read:hu sh", "1")] {
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
