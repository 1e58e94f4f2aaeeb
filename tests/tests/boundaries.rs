//! Which crate may know which: the arrows of docs/ARCHITECTURE.md, kept by reading every Cargo.toml.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::Table;

fn root() -> PathBuf {
    // tests run in the root of their package
    fs::canonicalize("..").unwrap()
}

fn toml(path: &Path) -> Table {
    toml::from_str(&fs::read_to_string(path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn members() -> Vec<String> {
    let workspace = toml(&root().join("Cargo.toml"));
    workspace["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member.as_str().unwrap().to_owned())
        .collect()
}

/// What each member depends on when it is built: not what its tests or its build script use.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let read = |member: String| {
        let manifest = toml(&root().join(&member).join("Cargo.toml"));
        let tables = manifest.get("dependencies").into_iter().chain(
            manifest
                .get("target")
                .and_then(|targets| targets.as_table())
                .into_iter()
                .flat_map(|targets| targets.values().filter_map(|target| target.get("dependencies"))),
        );
        let names = tables.flat_map(|table| table.as_table().unwrap().keys().cloned()).collect();
        (member, names)
    };
    members().into_iter().map(read).collect()
}

/// Our own crates that a member may name.
const ARROWS: [(&str, &[&str]); 11] = [
    ("proto", &[]),
    ("cluster", &["sensorium-proto"]),
    ("actors", &["sensorium-cluster", "sensorium-media", "sensorium-proto"]),
    ("actors/media", &[]),
    ("services/runtime", &[]),
    ("services/plane", &["sensorium-actors", "sensorium-cluster", "sensorium-proto", "sensorium-runtime"]),
    (
        "services/gateway",
        &["sensorium-actors", "sensorium-cluster", "sensorium-plane", "sensorium-proto", "sensorium-runtime"],
    ),
    ("services/worker", &["sensorium-actors", "sensorium-cluster", "sensorium-proto", "sensorium-runtime"]),
    (
        "services/sensorium",
        &[
            "sensorium-actors",
            "sensorium-cluster",
            "sensorium-gateway",
            "sensorium-plane",
            "sensorium-proto",
            "sensorium-runtime",
            "sensorium-worker",
        ],
    ),
    ("loadtest", &["sensorium-proto"]),
    ("tests", &["sensorium-proto"]),
];

#[test]
fn our_crates_point_one_way() {
    let dependencies = dependencies();
    assert_eq!(dependencies.len(), ARROWS.len(), "a new member needs its arrows here: {:?}", dependencies.keys());
    for (member, allowed) in ARROWS {
        for name in dependencies[member].iter().filter(|name| name.starts_with("sensorium")) {
            assert!(allowed.contains(&name.as_str()), "{member} depends on {name}, allowed are {allowed:?}");
        }
    }
}

/// What a member never holds.
const NEVER: [(&str, &[&str]); 9] = [
    ("proto", &["ractor", "tch", "tokio", "axum"]),
    ("cluster", &["ractor", "tonic", "tonic-health", "tonic-reflection", "axum", "tch"]),
    ("actors", &["tonic", "tonic-prost", "tonic-health", "tonic-types", "axum", "tch"]),
    ("actors/media", &["ractor", "tokio", "tonic", "tch"]),
    ("services/runtime", &["ractor", "tonic", "tch"]),
    ("services/plane", &["ractor", "tch"]),
    ("services/gateway", &["ractor", "tch"]),
    ("loadtest", &["ractor", "tch"]),
    ("tests", &["ractor", "tch"]),
];

#[test]
fn layers_do_not_know_what_is_not_theirs() {
    let dependencies = dependencies();
    for (member, never) in NEVER {
        for name in never {
            assert!(!dependencies[member].contains(*name), "{member} depends on {name}");
        }
    }
    let with_libtorch: Vec<_> =
        dependencies.iter().filter(|(_, names)| names.contains("tch")).map(|(m, _)| m).collect();
    assert_eq!(with_libtorch, ["services/worker"], "only the worker knows that libtorch exists");
}

#[test]
fn an_operators_build_does_without_libtorch() {
    let manifest = toml(&root().join("services/sensorium/Cargo.toml"));
    let worker = &manifest["dependencies"]["sensorium-worker"];
    assert_eq!(worker.get("optional").and_then(toml::Value::as_bool), Some(true), "{worker}");
}

#[test]
fn every_member_keeps_the_lints_and_versions_of_the_workspace() {
    for member in members() {
        let manifest = toml(&root().join(&member).join("Cargo.toml"));
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
        // what is in proto is generated
        assert_eq!(lints, (member != "proto").then_some(true), "[lints] of {member}");
        for key in ["version", "edition", "license", "publish"] {
            assert!(manifest["package"][key].get("workspace").is_some(), "package.{key} of {member}");
        }
    }
}

/// Files that git knows, or would.
fn files() -> Vec<PathBuf> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    let list = git.output().unwrap();
    assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
    let text = String::from_utf8(list.stdout).unwrap();
    text.lines().map(|line| root().join(line)).filter(|path| path.is_file()).collect()
}

#[test]
fn no_source_names_a_registry() {
    // assembled here, so that this file does not name them either
    let hosts = [["crates", ".io"], ["static.crates", ".io"], ["pypi", ".org"], ["pythonhosted", ".org"]]
        .map(|part| part.concat());
    for path in files() {
        let named = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if !["rs", "py", "sh", "toml", "proto"].contains(&named) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for host in &hosts {
            let url = format!("://{host}");
            assert!(
                !text.contains(&url),
                "{} names {url}: what is fetched, and whence, is the set-up's",
                path.display()
            );
        }
    }
}

#[test]
fn files_stay_readable() {
    for path in files() {
        if path.extension().is_some_and(|extension| extension == "rs") {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            assert!(lines <= 450, "{} has {lines} lines", path.display());
        }
    }
}
