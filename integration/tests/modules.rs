//! Within a crate, modules depend on each other in one direction: no circle.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect should stop"
)]

#[path = "common/module_graph.rs"]
mod module_graph;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use serde_json::Value;

use module_graph::{Circle, Graph};

/// The circles that are still there, by their members. One that is not listed fails, and so does one that is gone.
const KNOWN: &[&str] = &[];

#[test]
fn modules_depend_in_one_direction() -> Result<()> {
    let mut found = BTreeMap::new();
    for (name, root) in targets()? {
        let graph = Graph::read(&root, &|file| fs::read_to_string(file).ok());
        for Circle { members, path } in graph.circles() {
            found.insert(format!("{name}: {}", members.join(" ")), path);
        }
    }
    let known: BTreeSet<_> = KNOWN.iter().copied().collect();
    let unlisted = found.iter().filter(|found| !known.contains(&**found.0));
    let gone = known.iter().filter(|known| !found.contains_key(**known));
    let wrong: Vec<_> = unlisted
        .map(|(members, path)| format!("a circle, not in KNOWN: {members}\n{path}"))
        .chain(gone.map(|gone| format!("in KNOWN, and no longer a circle: {gone}\n")))
        .collect();
    ensure!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    Ok(())
}

/// The libraries and programs of the workspace, each with the file that it begins in.
fn targets() -> Result<Vec<(String, PathBuf)>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let mut targets = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        for target in package["targets"].as_array().unwrap() {
            let kinds = target["kind"].as_array().unwrap();
            if kinds
                .iter()
                .any(|kind| kind == "lib" || kind == "rlib" || kind == "bin")
            {
                let name = format!(
                    "{} ({})",
                    package["name"].as_str().unwrap(),
                    kinds[0].as_str().unwrap()
                );
                targets.push((name, target["src_path"].as_str().unwrap().into()));
            }
        }
    }
    Ok(targets)
}

/// The circles of a crate made of these files, by their members.
fn circles<const N: usize>(files: [(&str, &str); N]) -> Vec<String> {
    let files = BTreeMap::from(files);
    let read = |file: &Path| files.get(file.to_str()?).map(|&text| text.to_owned());
    let circles = Graph::read(Path::new("lib.rs"), &read).circles();
    circles
        .iter()
        .map(|circle| circle.members.join(" "))
        .collect()
}

#[test]
fn two_modules_make_a_circle() {
    let b = ("b.rs", "use crate::a::A; pub struct B;");
    let lib = ("lib.rs", "mod a; mod b;");
    assert_eq!(
        circles([lib, ("a.rs", "pub struct A(crate::b::B);"), b]),
        ["a b"]
    );
    assert_eq!(circles([lib, ("a.rs", "pub struct A;"), b]), [""; 0]);
}

#[test]
fn the_way_round_is_told() {
    let text = "mod a { pub fn a() { crate::b::b() } }\nmod b { pub fn b() { crate::c::c() } }\n\
        mod c { use super::a; pub fn c() { a::a() } }\nmod d { fn d() { crate::a::a() } }";
    let circles = Graph::read(Path::new("lib.rs"), &|_| Some(text.to_owned())).circles();
    assert_eq!(circles.len(), 1);
    assert_eq!(circles[0].members, ["a", "b", "c"]);
    let way = "  a -> b: crate::b::b (lib.rs:1)\n  b -> c: crate::c::c (lib.rs:2)\n  c -> a: a::a (lib.rs:3)\n";
    assert_eq!(circles[0].path, way);
}

#[test]
fn a_parent_and_its_child_make_a_circle() {
    let child = "fn f(parent: super::Parent) {} pub fn g() {}";
    for parent in [
        "fn h() { child::g() }",
        "use self::child::g;",
        "fn h() { print!(\"{}\", child::g()); }",
    ] {
        let parent = format!("mod child; struct Parent; {parent}");
        assert_eq!(
            circles([
                ("lib.rs", "mod parent;"),
                ("parent.rs", &parent),
                ("parent/child.rs", child)
            ]),
            ["parent parent::child"],
            "{parent}"
        );
    }
}

#[test]
fn what_a_parent_re_exports_is_its_childs() {
    let one = ("one.rs", "use super::Two; pub struct One;");
    let lib = ("lib.rs", "mod one; mod two; pub use {one::One, two::Two};");
    assert_eq!(circles([lib, one, ("two.rs", "pub struct Two;")]), [""; 0]);
    let two = ("two.rs", "use crate::One; pub struct Two;");
    assert_eq!(circles([lib, one, two]), ["one two"]);
}

#[test]
fn a_re_export_that_is_used_as_well_counts() {
    let child = ("child.rs", "use super::Root; pub struct Child;");
    let root = "mod child; pub use child::Child; pub struct Root;";
    assert_eq!(circles([("lib.rs", root), child]), [""; 0]);
    let root = format!("{root} fn f(child: Child) {{}}");
    assert_eq!(circles([("lib.rs", &root), child]), ["crate child"]);
    // What comes from elsewhere is not the parent's to re-export.
    let lib = ("lib.rs", "mod a; mod b;");
    let b = ("b.rs", "pub struct B(crate::a::A);");
    assert_eq!(
        circles([lib, ("a.rs", "pub use crate::b::B; pub struct A;"), b]),
        ["a b"]
    );
}

#[test]
fn tests_may_look_back() {
    let lib = ("lib.rs", "mod a; mod b;");
    let b = ("b.rs", "pub struct B(crate::a::A);");
    for of_a in [
        "#[cfg(test)] mod tests { use crate::b::B; }",
        "#[cfg(test)] use crate::b::B;",
        "impl A { #[cfg(test)] fn f(b: crate::b::B) {} }",
    ] {
        let a = format!("pub struct A; {of_a}");
        assert_eq!(circles([lib, ("a.rs", &a), b]), [""; 0], "{of_a}");
    }
}

#[test]
fn a_function_may_have_the_name_of_a_module() {
    let lib = ("lib.rs", "mod draw; mod pen; pub use draw::draw;");
    let draw = ("draw.rs", "pub fn draw() { crate::pen::Pen; }");
    assert_eq!(
        circles([lib, draw, ("pen.rs", "use crate::draw; pub struct Pen;")]),
        ["draw pen"]
    );
    assert_eq!(circles([lib, draw, ("pen.rs", "pub struct Pen;")]), [""; 0]);
}

#[test]
fn globs_attributes_macros_and_imports_of_modules_are_followed() {
    let lib = ("lib.rs", "mod a; mod b;");
    let b = ("b.rs", "pub struct B(crate::a::A);");
    for of_a in [
        "use crate::b::*;",
        "use crate::b::{self as other}; fn f(b: other::B) {}",
        "use crate::b::{self}; fn f(b: b::B) {}",
        "#[serde(with = crate::b::B)] struct C;",
        "fn f() { use crate::b::B; }",
        "fn f() { json!({ \"b\": C { of: crate::b::B } }) }",
        "fn f() { assert!((0..crate::b::B).is_empty()) }",
    ] {
        let a = format!("pub struct A; {of_a}");
        assert_eq!(circles([lib, ("a.rs", &a), b]), ["a b"], "{of_a}");
    }
}
