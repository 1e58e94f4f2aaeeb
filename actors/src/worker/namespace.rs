//! Under which name the answers of a version are cached: all that they depend on beside the input.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::manifest::Manifest;

/// Changes whenever pipelines give other answers to the same inputs.
const PREPROCESSING: u32 = 1;

/// What the files of a version were when its namespace was made, so that whoever reads its weights later can tell whether
/// they are still those.
pub struct Fingerprint {
    namespace: String,
    stamps: Stamps,
}

/// Of each file its name, and what changes with its content: device, inode, size, and the time of the last change.
type Stamps = Vec<(PathBuf, [i128; 4])>;

impl Fingerprint {
    /// Of the files that lie in `directory` now.
    ///
    /// # Errors
    /// Names the file, or the directory, that cannot be read.
    pub(super) fn take(manifest: &Manifest, version: u64, directory: &Path) -> Result<Self, String> {
        // first: what changes while the files are hashed has another stamp afterwards
        let stamps = stamps(directory)?;
        Ok(Self { namespace: of(manifest, version, directory)?, stamps })
    }

    /// The version's namespace.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether the files are still those; cheap unless they were touched.
    ///
    /// # Errors
    /// Says that they are not, or names the file that cannot be read.
    pub(super) fn check(&self, manifest: &Manifest, version: u64, directory: &Path) -> Result<(), String> {
        if stamps(directory)? == self.stamps || of(manifest, version, directory)? == self.namespace {
            return Ok(());
        }
        Err(format!("the files in {} are not those that the version was loaded from", directory.display()))
    }
}

fn stamps(directory: &Path) -> Result<Stamps, String> {
    let stamp = |path: PathBuf| -> io::Result<(PathBuf, [i128; 4])> {
        let meta = path.metadata()?;
        let changed = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
        Ok((path, [meta.dev().into(), meta.ino().into(), meta.size().into(), changed]))
    };
    let listed = files(directory).and_then(|paths| paths.into_iter().map(stamp).collect());
    listed.map_err(|error| format!("cannot read {}: {error}", directory.display()))
}

/// The namespace of a version: a hash of its manifest, of the names and contents of its files, and of the pipelines' own
/// version. Reads every file: some hundred milliseconds for a gigabyte that is in memory anyway, since it is being loaded.
///
/// # Errors
/// Names the file, or the directory, that cannot be read.
fn of(manifest: &Manifest, version: u64, directory: &Path) -> Result<String, String> {
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
    fn files_that_changed_in_place_are_noticed_and_those_that_were_only_touched_are_not() {
        let manifest = Manifest::generator("");
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("weights");
        write(&weights, "0123").unwrap();
        let taken = Fingerprint::take(&manifest, 1, folder.path()).unwrap();
        let check = || taken.check(&manifest, 1, folder.path());
        check().unwrap();
        std::fs::remove_file(&weights).unwrap();
        check().unwrap_err();
        write(&weights, "0123").unwrap();
        check().unwrap();
        write(&weights, "0124").unwrap();
        let why = check().unwrap_err();
        assert!(why.contains(&*folder.path().to_string_lossy()), "{why}");
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let why = of(&Manifest::generator(""), 1, Path::new("/nowhere")).unwrap_err();
        assert!(why.contains("/nowhere"), "{why}");
    }
}
