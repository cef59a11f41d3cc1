//! Which modules of a crate depend on which.
//!
//! A module depends on another when it names something that the other defines: in a `use`, a type, an expression, an
//! attribute or a macro's arguments. What counts is where the thing is defined, so `super::X` leads to the sibling that
//! has `X` when the parent only re-exports it. Declaring a child and re-exporting what it has are no dependency, and
//! code under `#[cfg(test)]` is left out. A call of a method names no module, so it is not seen.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, Block, Ident, ImplItemFn, Item, ItemMod, ItemUse, Macro, Meta, UseTree, Visibility,
    visit::{self, Visit},
};

/// Modules that depend on each other.
pub(crate) struct Circle {
    pub(crate) members: Vec<String>,
    /// The shortest way round from the first member, a line for each step.
    pub(crate) path: String,
}

/// The modules of a crate; the first is its root.
pub(crate) struct Graph(Vec<Module>);

#[derive(Default)]
struct Module {
    /// As in `xds::listener`; `crate` for the root.
    name: String,
    file: PathBuf,
    parent: usize,
    children: BTreeMap<String, usize>,
    defined: BTreeSet<String>,
    imports: BTreeMap<String, Vec<Vec<String>>>,
    globs: Vec<Vec<String>>,
    references: Vec<Reference>,
}

struct Reference {
    path: Vec<String>,
    line: usize,
    glob: bool,
    reexport: bool,
}

/// What a path leads to.
enum Found {
    Module(usize),
    /// Something that this module defines.
    In(usize),
}

impl Graph {
    /// Reads a crate from the file of its root. `read` returns the text of a file, if there is one.
    pub(crate) fn read(root: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Self {
        let crate_root = Module {
            name: "crate".to_owned(),
            file: root.to_owned(),
            ..Module::default()
        };
        let mut reader = Reader {
            modules: vec![crate_root],
            at: 0,
            folder: root.with_file_name(""),
            in_body: false,
            read,
        };
        reader.visit_file(&syn::parse_file(&read(root).unwrap()).unwrap());
        Self(reader.modules)
    }

    /// Every set of modules that depend on each other.
    pub(crate) fn circles(&self) -> Vec<Circle> {
        let edges: Vec<_> = (0..self.0.len()).map(|from| self.edges(from)).collect();
        let mut seen = BTreeSet::new();
        let mut circles = Vec::new();
        for start in 0..self.0.len() {
            let reached = ways(&edges, start);
            let back = |at: &usize| ways(&edges, *at).contains_key(&start);
            let members: Vec<_> = reached.keys().copied().filter(back).collect();
            if members.is_empty() || !seen.insert(members.clone()) {
                continue;
            }
            let name = |at: &usize| self.0[*at].name.clone();
            let (mut to, mut path) = (start, String::new());
            loop {
                let from = reached[&to];
                let (step, line) = (
                    format!("{} -> {}", name(&from), name(&to)),
                    &edges[from][&to],
                );
                path = format!("  {step}: {line}\n{path}");
                to = from;
                if to == start {
                    break;
                }
            }
            let members = members.iter().map(name).collect();
            circles.push(Circle { members, path });
        }
        circles
    }

    /// What a module depends on, each with the first line that says so.
    fn edges(&self, from: usize) -> BTreeMap<usize, String> {
        let module = &self.0[from];
        let mut edges = BTreeMap::new();
        for reference in &module.references {
            let to = match self.find(from, &reference.path, 32) {
                Some(Found::In(module)) => module,
                Some(Found::Module(module)) if reference.glob => module,
                _ => continue,
            };
            if to != from && !(reference.reexport && self.is_below(to, from)) {
                let path = reference.path.join("::");
                let line = format!("{path} ({}:{})", module.file.display(), reference.line);
                edges.entry(to).or_insert(line);
            }
        }
        edges
    }

    fn is_below(&self, module: usize, ancestor: usize) -> bool {
        let parent = self.0[module].parent;
        module != 0 && (parent == ancestor || self.is_below(parent, ancestor))
    }

    /// Looks a path up from a module; what other crates have is not found. `patience` ends an import that names itself,
    /// such as `use clap::clap`.
    fn find(&self, from: usize, path: &[String], patience: usize) -> Option<Found> {
        let patience = patience.checked_sub(1)?;
        let module = &self.0[from];
        let Some((first, rest)) = path.split_first() else {
            return Some(Found::Module(from));
        };
        match first.as_str() {
            "crate" => return self.find(0, rest, patience),
            "self" => return self.find(from, rest, patience),
            "super" => return self.find(module.parent, rest, patience),
            _ => {}
        }
        // A function may have the name of a module: only the module has something inside.
        let child = module.children.get(first);
        if let (Some(child), false) = (child, rest.is_empty()) {
            return self.find(*child, rest, patience);
        }
        if module.defined.contains(first) {
            return Some(Found::In(from));
        }
        let mut imports = module.imports.get(first).into_iter().flatten();
        let imported = imports.find_map(|import| match self.find(from, import, patience)? {
            Found::Module(module) => self.find(module, rest, patience),
            found => Some(found),
        });
        let through_glob = || {
            let mut globs = module.globs.iter();
            globs.find_map(|glob| match self.find(from, glob, patience)? {
                Found::Module(module) if module != from => self.find(module, path, patience),
                _ => None,
            })
        };
        let child = child.map(|child| Found::Module(*child));
        imported.or(child).or_else(through_glob)
    }
}

/// What can be reached from a module, each with the one before it on the shortest way.
fn ways(edges: &[BTreeMap<usize, String>], start: usize) -> BTreeMap<usize, usize> {
    let mut came_from = BTreeMap::new();
    let mut next = VecDeque::from([start]);
    while let Some(at) = next.pop_front() {
        for to in edges[at].keys() {
            if !came_from.contains_key(to) {
                came_from.insert(*to, at);
                next.push_back(*to);
            }
        }
    }
    came_from
}

struct Reader<'a> {
    modules: Vec<Module>,
    at: usize,
    /// Where the files of the current module's children are.
    folder: PathBuf,
    /// Whether this is in a function, whose items are its own.
    in_body: bool,
    read: &'a dyn Fn(&Path) -> Option<String>,
}

impl Reader<'_> {
    fn refer(&mut self, path: Vec<String>, line: usize, glob: bool, reexport: bool) {
        self.modules[self.at].references.push(Reference {
            path,
            line,
            glob,
            reexport,
        });
    }

    /// Takes every path in tokens that nobody parses: `a::b`, but not the `b` of `a.b`.
    fn scan(&mut self, tokens: TokenStream) {
        let (mut path, mut line, mut before) = (Vec::new(), 0, String::new());
        for token in tokens {
            if let TokenTree::Punct(punct) = token {
                before.push(punct.as_char());
                continue;
            }
            if before != "::" && !path.is_empty() {
                self.refer(mem::take(&mut path), line, false, false);
            }
            match token {
                TokenTree::Ident(ident) if !before.ends_with('.') || before.ends_with("..") => {
                    line = ident.span().start().line;
                    path.push(ident.to_string());
                }
                TokenTree::Group(group) => self.scan(group.stream()),
                _ => {}
            }
            before.clear();
        }
        if !path.is_empty() {
            self.refer(path, line, false, false);
        }
    }

    fn import(&mut self, tree: &UseTree, before: &[String], reexport: bool) {
        let with = |ident: &Ident| [before, &[ident.to_string()]].concat();
        let (path, name, span) = match tree {
            UseTree::Path(tree) => return self.import(&tree.tree, &with(&tree.ident), reexport),
            UseTree::Group(group) => {
                let trees = group.items.iter();
                return trees.for_each(|tree| self.import(tree, before, reexport));
            }
            UseTree::Glob(glob) => (before.to_vec(), None, glob.star_token.spans[0]),
            UseTree::Name(tree) => (with(&tree.ident), Some(&tree.ident), tree.ident.span()),
            UseTree::Rename(tree) => (with(&tree.ident), Some(&tree.rename), tree.ident.span()),
        };
        let module = &mut self.modules[self.at];
        match name.map(Ident::to_string) {
            _ if self.in_body => {}
            None => module.globs.push(path.clone()),
            Some(name) => {
                let itself = before.last().filter(|_| name == "self").cloned();
                let imports = module.imports.entry(itself.unwrap_or(name));
                imports.or_default().push(path.clone());
            }
        }
        self.refer(path, span.start().line, name.is_none(), reexport);
    }
}

fn only_in_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        matches!(&attribute.meta, Meta::List(list)
            if list.path.is_ident("cfg") && list.tokens.to_string() == "test")
    })
}

fn attributes_and_name(item: &Item) -> (&[Attribute], Option<&Ident>) {
    match item {
        Item::Const(item) => (&item.attrs, Some(&item.ident)),
        Item::Enum(item) => (&item.attrs, Some(&item.ident)),
        Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
        Item::Impl(item) => (&item.attrs, None),
        Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
        Item::Mod(item) => (&item.attrs, None),
        Item::Static(item) => (&item.attrs, Some(&item.ident)),
        Item::Struct(item) => (&item.attrs, Some(&item.ident)),
        Item::Trait(item) => (&item.attrs, Some(&item.ident)),
        Item::Type(item) => (&item.attrs, Some(&item.ident)),
        Item::Union(item) => (&item.attrs, Some(&item.ident)),
        Item::Use(item) => (&item.attrs, None),
        _ => (&[], None),
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, name) = attributes_and_name(item);
        if only_in_tests(attributes) {
            return;
        }
        if let (Some(name), false) = (name, self.in_body) {
            self.modules[self.at].defined.insert(name.to_string());
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if !only_in_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let (ident, parent) = (item.ident.to_string(), self.at);
        let inside = self.folder.join(&ident);
        let beside = self.folder.join(format!("{ident}.rs"));
        let outside = mem::replace(&mut self.folder, inside.clone());
        let mut module = Module {
            name: format!("{}::{ident}", self.modules[parent].name),
            file: self.modules[parent].file.clone(),
            parent,
            ..Module::default()
        };
        if parent == 0 {
            module.name.clone_from(&ident);
        }
        self.at = self.modules.len();
        self.modules[parent].children.insert(ident, self.at);
        if let Some((_, items)) = &item.content {
            self.modules.push(module);
            items.iter().for_each(|item| self.visit_item(item));
        } else {
            let mut files = [beside, inside.join("mod.rs")].into_iter();
            let read = |file: PathBuf| Some(((self.read)(&file)?, file));
            let (text, file) = files.find_map(read).unwrap();
            module.file = file;
            self.modules.push(module);
            self.visit_file(&syn::parse_file(&text).unwrap());
        }
        (self.at, self.folder) = (parent, outside);
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if item.leading_colon.is_none() {
            let reexport = !matches!(item.vis, Visibility::Inherited);
            self.import(&item.tree, &[], reexport);
        }
    }

    fn visit_block(&mut self, block: &'ast Block) {
        let outside = mem::replace(&mut self.in_body, true);
        visit::visit_block(self, block);
        self.in_body = outside;
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            let names = path.segments.iter().map(|part| part.ident.to_string());
            let line = path.segments[0].ident.span().start().line;
            self.refer(names.collect(), line, false, false);
        }
        visit::visit_path(self, path);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.scan(list.tokens.clone());
        }
    }

    fn visit_macro(&mut self, invoked: &'ast Macro) {
        self.visit_path(&invoked.path);
        self.scan(invoked.tokens.clone());
    }
}
