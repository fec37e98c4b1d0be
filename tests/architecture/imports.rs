//! The graph of imports between the files of a crate, and its circles.
//!
//! An arrow leads from a file to the file that defines an item which the first one names, in a `use`
//! declaration or in a path. Re-exports (`pub use`) are followed, so that an import through a parent
//! module counts as an import from the file behind it. Test modules do not count.
//!
//! ```text
//!  Crate::read ─► module tree (mod lines) ─► Crate::arrows ─► circles()
//!                                             names → files     strongly connected components
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree};

/// Maximum length of a chain of re-exports. Cargo accepts no crate whose re-exports form a loop.
const MAX_REEXPORTS: u32 = 16;

/// Path of a module or item from the crate's root.
type Names = Vec<String>;

/// One module: the file it is in, and the names that are declared in it.
#[derive(Debug)]
struct Module {
    file: PathBuf,
    /// Names of the items that are defined in it.
    items: BTreeSet<String>,
    /// Targets of the `use` declarations, by the name that each target has in this module.
    imports: BTreeMap<String, Names>,
    /// Modules all of whose names are imported (`use path::*`).
    globs: Vec<Names>,
    /// Paths in the code, as they are written.
    paths: BTreeSet<Names>,
}

/// The modules of a crate by their paths.
#[derive(Debug)]
pub(crate) struct Crate {
    root: PathBuf,
    modules: BTreeMap<Names, Module>,
}

impl Crate {
    /// Reads the crate whose root file is `root`, and all modules below it.
    pub(crate) fn read(root: &Path) -> Self {
        let mut modules = BTreeMap::new();
        read_module(root, &directory_of_children(root, true), &Vec::new(), &mut modules);
        Self { root: root.parent().unwrap().to_owned(), modules }
    }

    /// Returns, for each file, the files that it imports from. Paths are relative to the crate's root
    /// directory.
    pub(crate) fn arrows(&self) -> BTreeMap<PathBuf, BTreeSet<PathBuf>> {
        let mut arrows: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
        for (path, module) in &self.modules {
            let from = self.relative(&module.file);
            let targets = arrows.entry(from.clone()).or_default();
            let imports = module.imports.values().chain(&module.globs);
            for names in imports.chain(&module.paths) {
                let target = self.file_of(path, names, MAX_REEXPORTS);
                targets.extend(target.map(|file| self.relative(&file)).filter(|to| *to != from));
            }
        }
        arrows
    }

    fn relative(&self, file: &Path) -> PathBuf {
        file.strip_prefix(&self.root).unwrap().to_owned()
    }

    /// Returns the file that defines the item `names` of the module at `at`. Items of other crates have
    /// none. Modules have none either, because an import counts once it names an item.
    fn file_of(&self, at: &Names, names: &[String], hops: u32) -> Option<PathBuf> {
        assert!(hops > 0, "re-exports without an end at {names:?}");
        let (first, rest) = names.split_first()?;
        let mut module = at.clone();
        match first.as_str() {
            "crate" => self.file_in(&Vec::new(), rest, hops),
            "self" => self.file_in(at, rest, hops),
            "super" => {
                module.pop()?;
                match rest.first().map(String::as_str) {
                    Some("super") => self.file_of(&module, rest, hops),
                    _ => self.file_in(&module, rest, hops),
                }
            }
            // The first name is an import or a child of this module, or another crate.
            _ => self.file_in(at, names, hops),
        }
    }

    /// Returns the same as `file_of` for names that begin below the module at `at`.
    fn file_in(&self, at: &Names, names: &[String], hops: u32) -> Option<PathBuf> {
        let module = self.modules.get(at)?;
        let (first, rest) = names.split_first()?;
        let child: Names = at.iter().chain([first]).cloned().collect();
        if module.items.contains(first) {
            return Some(module.file.clone());
        }
        if self.modules.contains_key(&child) {
            return self.file_in(&child, rest, hops);
        }
        if let Some(target) = module.imports.get(first) {
            let whole: Names = target.iter().chain(rest).cloned().collect();
            // An import such as `use x::x` resolves to itself, so it must be an item of another crate.
            return (whole != names).then(|| self.file_of(at, &whole, hops - 1)).flatten();
        }
        module.globs.iter().find_map(|glob| {
            let whole: Names = glob.iter().chain(names).cloned().collect();
            self.file_of(at, &whole, hops - 1)
        })
    }
}

/// Reads one file as the module at `path`, and its children.
fn read_module(file: &Path, children: &Path, path: &Names, modules: &mut BTreeMap<Names, Module>) {
    let text = fs::read_to_string(file).unwrap();
    let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    read_items(&parsed.items, file, children, path, modules);
}

fn read_items(
    items: &[Item],
    file: &Path,
    children: &Path,
    path: &Names,
    modules: &mut BTreeMap<Names, Module>,
) {
    let mut reader = Reader::default();
    for item in items.iter().filter(|item| !is_for_tests(attributes(item))) {
        if let Item::Mod(child) = item {
            let name = child.ident.to_string();
            let child_path: Names = path.iter().chain([&name]).cloned().collect();
            match &child.content {
                Some((_, items)) => {
                    read_items(items, file, &children.join(&name), &child_path, modules);
                }
                None => {
                    let file = file_of_module(children, &name);
                    let below = directory_of_children(&file, false);
                    read_module(&file, &below, &child_path, modules);
                }
            }
        } else {
            reader.items.extend(name_of(item));
            reader.visit_item(item);
        }
    }
    let Reader { items, imports, globs, paths } = reader;
    let module = Module { file: file.to_owned(), items, imports, globs, paths };
    modules.insert(path.clone(), module);
}

/// Returns the file of `mod name;` in a file whose children are in `directory`.
fn file_of_module(directory: &Path, name: &str) -> PathBuf {
    let files = [directory.join(format!("{name}.rs")), directory.join(name).join("mod.rs")];
    files.into_iter().find(|file| file.exists()).unwrap_or_else(|| panic!("no file of {name}"))
}

fn directory_of_children(file: &Path, is_root: bool) -> PathBuf {
    let directory = file.parent().unwrap();
    if is_root || file.ends_with("mod.rs") {
        directory.to_owned()
    } else {
        directory.join(file.file_stem().unwrap())
    }
}

/// Collects the names that a module defines and imports.
#[derive(Default)]
struct Reader {
    items: BTreeSet<String>,
    imports: BTreeMap<String, Names>,
    globs: Vec<Names>,
    paths: BTreeSet<Names>,
}

impl Reader {
    fn read_use(&mut self, tree: &UseTree, before: &Names) {
        let with = |name: &syn::Ident| -> Names {
            before.iter().cloned().chain([name.to_string()]).collect()
        };
        match tree {
            UseTree::Path(path) => self.read_use(&path.tree, &with(&path.ident)),
            UseTree::Name(name) if name.ident == "self" => {
                let alias = before.last().unwrap().clone();
                self.imports.insert(alias, before.clone());
            }
            UseTree::Name(name) => {
                self.imports.insert(name.ident.to_string(), with(&name.ident));
            }
            UseTree::Rename(rename) => {
                self.imports.insert(rename.rename.to_string(), with(&rename.ident));
            }
            UseTree::Glob(_) => self.globs.push(before.clone()),
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.read_use(tree, before));
            }
        }
    }

    /// Finds paths in the arguments of a macro. syn does not parse these, because only the macro defines
    /// their syntax.
    fn read_tokens(&mut self, tokens: TokenStream) {
        let mut path = Names::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) if path.is_empty() || colons == 2 => {
                    path.push(ident.to_string());
                    colons = 0;
                    continue;
                }
                TokenTree::Ident(ident) => {
                    self.add_path(std::mem::replace(&mut path, vec![ident.to_string()]));
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    colons += 1;
                    continue;
                }
                TokenTree::Group(group) => {
                    self.add_path(std::mem::take(&mut path));
                    self.read_tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.add_path(std::mem::take(&mut path));
                }
            }
            colons = 0;
        }
        self.add_path(path);
    }

    /// Adds a path of several names. A single name is an item of the same file, or an import that was
    /// counted already.
    fn add_path(&mut self, path: Names) {
        if path.len() > 1 {
            self.paths.insert(path);
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.read_use(&item.tree, &Names::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add_path(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.read_tokens(item.tokens.clone());
        visit::visit_macro(self, item);
    }
}

/// Returns whether an item is compiled for tests only.
pub(crate) fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

/// Returns the circles: the sets of files in which each file reaches every other one.
pub(crate) fn circles(arrows: &BTreeMap<PathBuf, BTreeSet<PathBuf>>) -> Vec<BTreeSet<PathBuf>> {
    let reached: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> =
        arrows.keys().map(|file| (file, reached_from(file, arrows))).collect();
    let mut found = Vec::new();
    for (file, targets) in &reached {
        let circle: BTreeSet<PathBuf> = targets
            .iter()
            .filter(|target| reached.get(*target).is_some_and(|back| back.contains(file)))
            .map(|target| (*target).clone())
            .collect();
        if !circle.is_empty() && !found.contains(&circle) {
            found.push(circle);
        }
    }
    found
}

fn reached_from<'a>(
    file: &PathBuf,
    arrows: &'a BTreeMap<PathBuf, BTreeSet<PathBuf>>,
) -> BTreeSet<&'a PathBuf> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&PathBuf> = arrows[file].iter().collect();
    while let Some(next) = open.pop() {
        if reached.insert(next) {
            open.extend(arrows.get(next).into_iter().flatten());
        }
    }
    reached
}
