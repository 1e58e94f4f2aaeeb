//! Under which name the answers of a version are cached: all that they depend on beside the input.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::manifest::Manifest;

/// Changes whenever pipelines give other answers to the same inputs.
const PREPROCESSING: u32 = 1;

/// The namespace of a version: a hash of its manifest, of the names and contents of its files, and of the pipelines' own
/// version. Reads every file: some hundred milliseconds for a gigabyte that is in memory anyway, since it is being loaded.
///
/// # Errors
/// Names the file, or the directory, that cannot be read.
pub(super) fn of(manifest: &Manifest, version: u64, directory: &Path) -> Result<String, String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{PREPROCESSING}/{version}/{manifest:?}").as_bytes());
    for path in files(directory).map_err(|error| format!("cannot read {}: {error}", directory.display()))? {
        let content = digest(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        hasher.update(format!("/{:?}:{content}", path.file_name()).as_bytes());
    }
    Ok(format!("{}/{version}/{}", manifest.name, &hasher.finalize().to_hex()[..16]))
}

fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = directory.read_dir()?.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = entries.collect::<io::Result<Vec<PathBuf>>>()?;
    paths.retain(|path| path.is_file());
    paths.sort_unstable();
    Ok(paths)
}

fn digest(path: &Path) -> io::Result<blake3::Hash> {
    Ok(blake3::Hasher::new().update_reader(File::open(path)?)?.finalize())
}

#[cfg(test)]
mod tests {
    use std::fs::write;

    use super::*;

    #[test]
    fn other_manifests_versions_names_and_contents_have_other_names() {
        let (plain, safe) = (Manifest::generator(""), Manifest::generator("cache = true"));
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let of = |manifest: &Manifest, version| super::of(manifest, version, folder.path()).unwrap();
        write(path("weights"), "0123").unwrap();
        let first = of(&plain, 1);
        assert!(first.starts_with("m/1/"), "{first}");
        assert_eq!(of(&plain, 1), first);
        let mut all = vec![first.clone(), of(&safe, 1), of(&plain, 2)];
        write(path("weights"), "0124").unwrap();
        all.push(of(&plain, 1)); // of the same size
        std::fs::rename(path("weights"), path("other")).unwrap();
        all.push(of(&plain, 1));
        write(path("labels"), "").unwrap();
        all.push(of(&plain, 1));
        let different: std::collections::BTreeSet<&String> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "{all:?}");
        std::fs::remove_file(path("labels")).unwrap();
        std::fs::rename(path("other"), path("weights")).unwrap();
        write(path("weights"), "0123").unwrap();
        assert_eq!(of(&plain, 1), first, "what is put back is known again");
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let why = of(&Manifest::generator(""), 1, Path::new("/nowhere")).unwrap_err();
        assert!(why.contains("/nowhere"), "{why}");
    }
}
