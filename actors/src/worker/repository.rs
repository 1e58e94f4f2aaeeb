//! The model repository on disk: `<repository>/<model>/model.toml` and `<repository>/<model>/<version>/`.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::manifest::{self, Manifest, VersionPolicy};

/// A repository's folder.
#[derive(Clone, Debug)]
pub struct Repository {
    root: PathBuf,
}

/// A model as it lies there.
#[derive(Debug)]
pub struct Entry {
    /// The model's id.
    pub name: String,
    /// What `model.toml` says, or why it cannot be read.
    pub manifest: Result<Manifest, manifest::Error>,
    /// Versions that are there, ascending.
    pub versions: Vec<u64>,
}

impl Entry {
    /// The versions that the manifest's policy serves, ascending.
    pub fn served(&self) -> Vec<u64> {
        self.manifest.as_ref().map_or_else(|_| Vec::new(), |manifest| self.served_by(&manifest.version_policy))
    }

    /// The versions that a policy serves, ascending.
    pub fn served_by(&self, policy: &VersionPolicy) -> Vec<u64> {
        match policy {
            VersionPolicy::Latest => self.versions.last().copied().into_iter().collect(),
            VersionPolicy::All => self.versions.clone(),
            VersionPolicy::Specific(wanted) => {
                self.versions.iter().copied().filter(|version| wanted.contains(version)).collect()
            }
        }
    }
}

impl Repository {
    /// The repository at `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every model that is there, by name.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let failed = |error: std::io::Error| Error::FailedPrecondition {
            reason: "REPOSITORY",
            message: format!("cannot read the model repository {}: {error}", self.root.display()),
        };
        let mut entries = Vec::new();
        for item in std::fs::read_dir(&self.root).map_err(failed)? {
            let item = item.map_err(failed)?;
            if let Some(name) = item.file_name().to_str()
                && item.path().join("model.toml").is_file()
            {
                entries.push(self.read(name));
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// One model; NOT_FOUND with the names that exist.
    pub fn get(&self, name: &str) -> Result<Entry> {
        // a name comes from outside: it must not lead out of the repository
        let plain = !name.is_empty() && Path::new(name).components().count() == 1 && !name.starts_with('.');
        if plain && self.root.join(name).join("model.toml").is_file() {
            return Ok(self.read(name));
        }
        let known: Vec<String> = self.list()?.into_iter().map(|entry| entry.name).collect();
        Err(Error::NotFound {
            what: format!("model '{name}'"),
            known: format!("the repository has {}", crate::error::names(&known)),
        })
    }

    /// Where a version lies.
    pub fn directory(&self, name: &str, version: u64) -> PathBuf {
        self.root.join(name).join(version.to_string())
    }

    fn read(&self, name: &str) -> Entry {
        let folder = self.root.join(name);
        let path = folder.join("model.toml");
        let manifest = Manifest::read(&path).and_then(|manifest| {
            if manifest.name == name {
                return Ok(manifest);
            }
            Err(manifest::Error::Value {
                path,
                key: "name",
                value: format!("\"{}\"", manifest.name),
                expected: "the name of the model's folder",
            })
        });
        let mut versions: Vec<u64> = std::fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .filter_map(|item| item.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        versions.sort_unstable();
        Entry { name: name.to_owned(), manifest, versions }
    }
}
