//! Headers that are valid, but that their author may have meant otherwise: another delimiter, no header at all, another encoding.

use std::fmt;

use crate::csv::schema::Schema;

/// Delimiters of other programs.
const DELIMITERS: [char; 3] = [';', '\t', '|'];

/// What about a header may be a mistake. It prints what was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// The only column has another delimiter in its name.
    Delimiter(String, char),
    /// The line with which Excel names a delimiter.
    ExcelSeparator(String),
    /// All names are numbers, as in a row of data.
    Numbers(String),
    /// White space around a name.
    Spaces(String),
    /// U+FFFD, which stands for bytes that another program could not decode, or characters that do not show.
    Undecoded(String),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delimiter(name, delimiter) => {
                let delimiter = if *delimiter == '\t' { "a tab".to_owned() } else { format!("`{delimiter}`") };
                write!(
                    f,
                    "one column named `{}`: it has {delimiter} in it, and only a comma separates columns",
                    shown(name)
                )
            }
            Self::ExcelSeparator(name) => {
                write!(f, "one column named `{name}`: that line is for Excel, and a header is expected in its place")
            }
            Self::Numbers(names) => write!(
                f,
                "columns named `{names}`, which are numbers as in a row of data: if the file has no header, set \
                 ROWLOCK_CSV_HEADER=none"
            ),
            Self::Spaces(name) => {
                write!(f, "a column named `{}`: the white space around it belongs to the name", shown(name))
            }
            Self::Undecoded(name) => {
                write!(f, "a column named `{}`: it has characters that were not decoded or do not show", shown(name))
            }
        }
    }
}

/// The name with characters that do not show as their escapes.
fn shown(name: &str) -> String {
    let escape = |c: char| if is_unprintable(c) { c.escape_default().to_string() } else { c.to_string() };
    name.chars().map(escape).collect()
}

fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}')
}

/// What about the header may be a mistake; nothing for a headerless file.
pub(crate) fn doubts(schema: &Schema) -> Vec<Doubt> {
    let Some(names) = schema.names() else { return Vec::new() };
    let mut doubts = Vec::new();
    if let [name] = names {
        let is_excel =
            name.trim().to_ascii_lowercase().strip_prefix("sep=").is_some_and(|rest| rest.chars().count() <= 1);
        match DELIMITERS.into_iter().find(|delimiter| name.contains(*delimiter)) {
            _ if is_excel => doubts.push(Doubt::ExcelSeparator(name.clone())),
            Some(delimiter) => doubts.push(Doubt::Delimiter(name.clone(), delimiter)),
            None => {}
        }
    }
    if names.iter().all(|name| name.trim().parse::<f64>().is_ok_and(f64::is_finite)) {
        doubts.push(Doubt::Numbers(names.join(",")));
    }
    let is_hidden = |c: char| c == '\u{fffd}' || (is_unprintable(c) && c != '\t');
    for name in names {
        if name.trim() != name {
            doubts.push(Doubt::Spaces(name.clone()));
        } else if name.contains(is_hidden) {
            doubts.push(Doubt::Undecoded(name.clone()));
        }
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspect_header_is_doubted_with_what_was_understood() {
        for (header, expected) in [
            ("a;b;c", &["one column named `a;b;c`: it has `;`"][..]),
            ("a\tb", &["one column named `a\\tb`: it has a tab"]),
            ("a|b", &["one column named `a|b`: it has `|`"]),
            ("sep=;", &["one column named `sep=;`: that line is for Excel"]),
            ("SEP=", &["one column named `SEP=`: that line is for Excel"]),
            (
                "1,2.5,-3",
                &["columns named `1,2.5,-3`, which are numbers as in a row of data: if the file has no header"],
            ),
            ("2026", &["columns named `2026`, which are numbers"]),
            ("a, b,c ", &["a column named ` b`: the white space", "a column named `c `"]),
            ("na\u{fffd}me,b", &["a column named `na\u{fffd}me`: it has characters that were not decoded"]),
            ("\u{feff}a,b", &["a column named `\\u{feff}a`: it has characters"]),
            ("\"a\nb\"", &["a column named `a\\nb`: it has characters"]),
        ] {
            let schema = Schema::from_header(header.as_bytes()).expect("a header");
            let found: Vec<_> = doubts(&schema).iter().map(ToString::to_string).collect();
            assert_eq!(found.len(), expected.len(), "{header:?}: {found:?}");
            assert!(found.iter().zip(expected).all(|(found, start)| found.starts_with(start)), "{header:?}: {found:?}");
        }
    }

    #[test]
    fn usual_header_is_not_doubted() {
        for header in [
            "timestamp,replica,token,data",
            "data",
            "a;b,c",
            "1,name",
            "sep=ab",
            "naïve,größe,名前",
            "first name,x",
            "inf,nan",
        ] {
            let schema = Schema::from_header(header.as_bytes()).expect("a header");
            assert_eq!(doubts(&schema), [], "{header:?}");
        }
        assert_eq!(doubts(&Schema::headerless()), []);
    }
}
