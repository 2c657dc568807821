//! How the project reads: sizes of files, and words that have a plainer name.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Words of code that have a better name, and that name. They are looked for as whole words in `src/`.
const NAMES: [(&str, &str); 33] = [
    ("Place", "FileKind, QueueTicket or sequence"),
    ("Reach", "BackendHealth"),
    ("Wake", "NotificationListener"),
    ("Told", "LastNotification"),
    ("Kept", "Retained"),
    ("Wanted", "Reacquire"),
    ("Again", "Reacquired"),
    ("Seen", "RefreshOutcome"),
    ("look_idly", "idle_refresh"),
    ("Spread", "Histogram"),
    ("introduce", "set_build_info"),
    ("Waiting", "PendingAppend"),
    ("Placed", "EntryOutcome"),
    ("Watching", "Subscription"),
    ("Bulletin", "PeerFile"),
    ("News", "NewRows"),
    ("Stretch", "FileRange"),
    ("Landed", "AppendedRange"),
    ("Facts", "CodeFacts"),
    ("leave_mark", "set_sync_failed_flag"),
    ("print_of", "tail_checksum"),
    ("csv_print", "csv_tail_checksum"),
    ("put_back", "requeue"),
    ("goes_on", "can_continue"),
    ("wanted_again", "reacquire_policy"),
    ("is_out_of_reach", "is_unreachable"),
    ("take_back", "revoke_record"),
    ("mend", "repair"),
    ("set_aside", "quarantine"),
    ("place_for", "find_record_space"),
    ("room_for", "bytes_left_for"),
    ("make_room", "reserve_record_space"),
    ("door", "authorize"),
];

/// Phrases of prose that a reader has to decode, in lower case. They are looked for in `src/`, README and `docs/`.
const PHRASES: [(&str, &str); 16] = [
    ("whoever", "name the subject"),
    ("who hung up", "a cancelled request"),
    ("who has hung up", "a disconnected client"),
    ("who waits", "waiters"),
    ("who comes", "name the subject"),
    ("who asks", "name the subject"),
    ("who watches", "subscribers"),
    ("somebody watches", "a client subscribes"),
    ("set aside", "quarantine"),
    ("sets aside", "quarantines"),
    ("as good as none", "counts as unset"),
    ("what does not wait", "name the subject"),
    ("is told that", "receives"),
    ("out of reach", "unreachable"),
    ("in reach", "reachable"),
    ("none of ours", "foreign"),
];

const FILE_LINES_MAX: usize = 500;
const PAGE_LINES_MAX: usize = 150;
const TEST_NAME_MAX: usize = 60;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, extensions, found);
        } else if path.extension().is_some_and(|extension| extensions.iter().any(|known| extension == *known)) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&root().join("src"), &["rs", "lua"], &mut found);
    found
}

/// `file:line: word (better)` for each line in which `has` finds a word of the table.
fn finds(paths: &[PathBuf], table: &[(&str, &str)], has: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for path in paths {
        let text = fs::read_to_string(path).expect("readable");
        for (line, number) in text.lines().zip(1..) {
            for (word, better) in table.iter().filter(|(word, _)| has(line, word)) {
                let path = path.strip_prefix(root()).expect("within the project").display();
                found.push(format!("{path}:{number}: {word} ({better})"));
            }
        }
    }
    found
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part))
}

#[test]
fn sources_use_the_glossarys_names() {
    let found = finds(&sources(), &NAMES, has_word);
    assert!(found.is_empty(), "words with a better name:\n{}", found.join("\n"));
}

#[test]
fn prose_uses_plain_phrases() {
    let mut paths = sources();
    files(&root().join("docs"), &["md"], &mut paths);
    paths.extend(["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|name| root().join(name)));
    let found = finds(&paths, &PHRASES, |line, phrase| line.to_lowercase().contains(phrase));
    assert!(found.is_empty(), "phrases with a plainer form:\n{}", found.join("\n"));
}

#[test]
fn files_and_pages_keep_to_their_length() {
    let lines = |path: &Path| fs::read_to_string(path).expect("readable").lines().count();
    for path in sources() {
        assert!(lines(&path) <= FILE_LINES_MAX, "{} has {} lines", path.display(), lines(&path));
    }
    for page in ["README.md", "ARCHITECTURE.md"] {
        assert!(lines(&root().join(page)) <= PAGE_LINES_MAX, "{page} has {} lines", lines(&root().join(page)));
    }
}

#[test]
fn test_names_fit_sixty_characters() {
    let mut paths = sources();
    files(&root().join("tests"), &["rs"], &mut paths);
    let mut long = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).expect("readable");
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for pair in
            lines.windows(2).filter(|pair| pair[0].starts_with("#[test]") || pair[0].starts_with("#[tokio::test"))
        {
            let name = pair[1].split_once("fn ").map_or("", |(_, rest)| rest.split('(').next().unwrap_or_default());
            if name.len() > TEST_NAME_MAX {
                long.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert!(
        long.is_empty(),
        "tests with long names:
{}",
        long.join(
            "
"
        )
    );
}
