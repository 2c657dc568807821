//! The modules of `src/`: each uses only the ones below it, no files use each other in a circle, and libraries stay where they belong.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use syn::{Attribute, ItemUse, UseTree, visit::Visit};

/// Each top module, and the ones that it may use.
const MAY_USE: [(&str, &[&str]); 19] = [
    (
        "cli",
        &[
            "server",
            "api",
            "config",
            "commit",
            "failpoints",
            "lock",
            "storage",
            "csv",
            "client",
            "load",
            "simulation",
            "http",
        ],
    ),
    ("load", &["client", "csv", "random"]),
    ("server", &["http", "commit", "config", "csv", "metrics", "client"]),
    ("http", &["api", "commit", "csv", "config", "fuzz_corpus", "metrics", "simulation", "time"]),
    (
        "commit",
        &[
            "api",
            "lock",
            "storage",
            "csv",
            "config",
            "failpoints",
            "fencing",
            "metrics",
            "progress",
            "simulation",
            "time",
        ],
    ),
    ("lock", &["api", "config", "fencing", "metrics", "progress", "time"]),
    ("storage", &["api", "csv", "failpoints", "fencing", "fuzz_corpus", "metrics", "random", "time"]),
    ("api", &["fencing", "time"]),
    ("csv", &["fencing"]),
    ("simulation", &[]),
    ("config", &[]),
    ("failpoints", &[]),
    ("fencing", &[]),
    ("metrics", &["api"]),
    ("progress", &[]),
    ("random", &[]),
    ("fuzz_corpus", &[]),
    ("time", &[]),
    ("client", &[]),
];

/// Libraries that belong to some modules alone.
const LIBRARIES: [(&str, &[&str]); 12] = [
    ("axum", &["http", "server"]),
    ("tower_http", &["http"]),
    ("utoipa", &["http", "api"]),
    ("utoipa_axum", &["http"]),
    ("utoipa_swagger_ui", &["http"]),
    ("deadpool", &["lock"]),
    ("deadpool_redis", &["lock"]),
    ("redis", &["lock"]),
    ("csv_core", &["csv", "http", "load"]),
    ("clap", &["cli", "config"]),
    ("metrics", &["metrics"]),
    ("metrics_exporter_prometheus", &["metrics"]),
];

type ModulePath = Vec<String>;

/// What one source file uses.
#[derive(Default)]
struct Uses {
    module: ModulePath,
    /// Paths within the crate; the flag tells code that only tests compile.
    ours: BTreeSet<(ModulePath, bool)>,
    /// First segments of all other paths.
    others: BTreeSet<String>,
    /// Names that this file re-exports, and where they come from.
    reexports: BTreeMap<String, ModulePath>,
    /// Names that a `use` of this file brings in: a path that begins with one names no library.
    imported: BTreeSet<String>,
    in_test: bool,
    /// How many inline modules are open.
    depth: usize,
}

impl Uses {
    fn note(&mut self, segments: &[String]) -> Option<ModulePath> {
        let mut path = self.module.clone();
        let mut rest = segments;
        match rest.first()?.as_str() {
            "crate" => {
                path.clear();
                rest = &rest[1..];
            }
            "self" | "super" => {
                let mut up = 0;
                while let Some("super" | "self") = rest.first().map(String::as_str) {
                    up += usize::from(rest[0] == "super");
                    rest = &rest[1..];
                }
                // An inline module is part of its file.
                path.truncate(path.len().saturating_sub(up.saturating_sub(self.depth)));
            }
            _ => {
                self.others.insert(segments[0].clone());
                return None;
            }
        }
        path.extend(rest.iter().filter(|segment| *segment != "self").cloned());
        self.ours.insert((path.clone(), self.in_test));
        Some(path)
    }

    fn flatten(tree: &UseTree, before: &mut ModulePath, found: &mut Vec<(ModulePath, String)>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                Self::flatten(&path.tree, before, found);
                before.pop();
            }
            UseTree::Name(name) => {
                let name = name.ident.to_string();
                let known_as = if name == "self" { before.last().cloned().unwrap_or_default() } else { name.clone() };
                found.push(([before.as_slice(), &[name]].concat(), known_as));
            }
            UseTree::Rename(rename) => {
                let path = [before.as_slice(), &[rename.ident.to_string()]].concat();
                found.push((path, rename.rename.to_string()));
            }
            UseTree::Glob(_) => found.push((before.clone(), String::new())),
            UseTree::Group(group) => group.items.iter().for_each(|item| Self::flatten(item, before, found)),
        }
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

impl<'ast> Visit<'ast> for Uses {
    /// `pub(in crate::lock)` names a module, but uses nothing of it.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let was_test = self.in_test;
        self.in_test |= is_test(&item.attrs);
        self.depth += usize::from(item.content.is_some());
        if item.content.is_none() {
            self.imported.insert(item.ident.to_string());
        }
        syn::visit::visit_item_mod(self, item);
        self.depth -= usize::from(item.content.is_some());
        self.in_test = was_test;
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let mut found = Vec::new();
        Self::flatten(&item.tree, &mut Vec::new(), &mut found);
        let is_public = !matches!(item.vis, syn::Visibility::Inherited);
        for (mut path, known_as) in found {
            // `use child::Item` in a `mod.rs`.
            let child = path.first().filter(|first| item.leading_colon.is_none() && self.imported.contains(*first));
            if child.is_some() {
                path.insert(0, "self".to_owned());
            }
            let from = self.note(&path);
            if let Some(from) = from {
                if is_public {
                    self.reexports.insert(known_as.clone(), from);
                }
                self.imported.insert(known_as);
            }
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: ModulePath = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 && (path.leading_colon.is_some() || !self.imported.contains(&segments[0])) {
            self.note(&segments);
        }
        syn::visit::visit_path(self, path);
    }
}

fn read(path: &Path, module: &ModulePath, files: &mut Vec<Uses>) {
    for entry in fs::read_dir(path).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            read(&path, &[module.as_slice(), &[name]].concat(), files);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "main" {
            let is_root = matches!(name.as_str(), "mod" | "lib");
            let module = if is_root { module.clone() } else { [module.as_slice(), &[name]].concat() };
            let source = fs::read_to_string(&path).expect("readable");
            let mut uses = Uses { module, ..Uses::default() };
            uses.visit_file(&syn::parse_file(&source).expect("Rust"));
            files.push(uses);
        }
    }
}

fn sources() -> Vec<Uses> {
    let mut files = Vec::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &Vec::new(), &mut files);
    files
}

/// The file that defines what a path names, re-exports followed.
fn defined_in(path: &[String], files: &BTreeMap<&[String], &Uses>) -> ModulePath {
    let mut len = path.len();
    while !files.contains_key(&path[..len]) {
        len -= 1;
    }
    let (module, rest) = path.split_at(len);
    match rest.first().and_then(|name| files[module].reexports.get(name)) {
        Some(from) if from != path => defined_in(&[from.as_slice(), &rest[1..]].concat(), files),
        _ => module.to_vec(),
    }
}

#[test]
fn each_module_uses_only_the_ones_below_it() {
    for file in sources().iter().filter(|file| !file.module.is_empty()) {
        let (top, here) = (&file.module[0], file.module.join("::"));
        let (_, allowed) = MAY_USE.iter().find(|(module, _)| module == top).expect("a known module");
        for (used, _) in &file.ours {
            let used = &used[0];
            assert!(used == top || allowed.contains(&used.as_str()), "{here} uses {used}");
        }
        for (library, homes) in LIBRARIES {
            assert!(!file.others.contains(library) || homes.contains(&top.as_str()), "{here} uses {library}");
        }
    }
}

/// All files that a file uses, directly or through other files.
fn reachable(module: &ModulePath, uses: &BTreeMap<ModulePath, BTreeSet<ModulePath>>) -> BTreeSet<ModulePath> {
    let (mut found, mut open) = (BTreeSet::new(), vec![module]);
    while let Some(module) = open.pop() {
        let used = uses.get(module).into_iter().flatten();
        open.extend(used.filter(|module| found.insert((*module).clone())));
    }
    found
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let sources = sources();
    let files: BTreeMap<&[String], &Uses> = sources.iter().map(|file| (file.module.as_slice(), file)).collect();
    let mut uses: BTreeMap<ModulePath, BTreeSet<ModulePath>> = BTreeMap::new();
    for file in sources.iter().filter(|file| !file.module.is_empty()) {
        let used = file.ours.iter().filter(|(_, in_test)| !in_test).map(|(path, _)| defined_in(path, &files));
        uses.insert(file.module.clone(), used.filter(|module| *module != file.module).collect());
    }
    // A file is part of a circle if it uses itself through other files.
    let in_circle: BTreeSet<ModulePath> =
        uses.keys().filter(|module| reachable(module, &uses).contains(*module)).cloned().collect();
    uses.retain(|module, _| in_circle.contains(module));
    let text = |module: &ModulePath| module.join("::");
    let circles: Vec<String> = uses
        .iter()
        .map(|(module, used)| {
            let used: Vec<_> = used.iter().filter(|module| uses.contains_key(*module)).map(text).collect();
            format!("{} -> {}", text(module), used.join(", "))
        })
        .collect();
    assert!(circles.is_empty(), "files that use each other:\n{}", circles.join("\n"));
}

#[test]
fn every_module_of_the_crate_is_listed() {
    let modules: BTreeSet<_> = sources().iter().filter_map(|file| file.module.first().cloned()).collect();
    assert_eq!(modules, MAY_USE.iter().map(|(module, _)| (*module).to_owned()).collect());
}
