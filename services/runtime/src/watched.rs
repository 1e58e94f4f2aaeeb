//! What is read from files, and read again when they change: certificates, API keys, key sets.
//!
//! Files are compared by what is in them: a mounted secret is swapped by a link, and tools that copy keep times. What is
//! new is taken when two looks have found the same, so that a certificate and its key, written one after the other, come
//! together. What cannot be used is logged once and left out; the last good value stays.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The files, in order; or why one of them cannot be read.
type Contents = Result<Vec<Vec<u8>>, String>;

/// A value as its files say now. Cheap to clone; the files are looked at for as long as any clone lives.
pub struct Watched<T> {
    now: Arc<ArcSwap<T>>,
}

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self { now: self.now.clone() }
    }
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads `files`, and makes of them what `parse` does, now and after every change. `what` stands in logs. Needs a
    /// running Tokio runtime.
    ///
    /// # Errors
    /// If a file cannot be read now, or `parse` refuses what is in it.
    pub fn start(
        what: &'static str,
        files: Vec<PathBuf>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + 'static,
    ) -> Result<Self, String> {
        let contents: Vec<Vec<u8>> =
            files.iter().map(|path| named(path, std::fs::read(path))).collect::<Result<_, _>>()?;
        let now = Arc::new(ArcSwap::from_pointee(parse(&contents)?));
        tokio::spawn(watch(what, files, Ok(contents), Arc::downgrade(&now), parse));
        Ok(Self { now })
    }

    /// The value.
    pub fn get(&self) -> Arc<T> {
        self.now.load_full()
    }
}

fn named(path: &Path, read: std::io::Result<Vec<u8>>) -> Result<Vec<u8>, String> {
    read.map_err(|error| format!("cannot read {}: {error}", path.display()))
}

async fn read(files: &[PathBuf]) -> Contents {
    let mut contents = Vec::with_capacity(files.len());
    for path in files {
        contents.push(named(path, tokio::fs::read(path).await)?);
    }
    Ok(contents)
}

async fn watch<T>(
    what: &'static str,
    files: Vec<PathBuf>,
    mut judged: Contents,
    value: Weak<ArcSwap<T>>,
    parse: impl Fn(&[Vec<u8>]) -> Result<T, String>,
) {
    let mut settling: Option<Contents> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let found = read(&files).await;
        let Some(value) = value.upgrade() else { return };
        if found == judged {
            settling = None;
            continue;
        }
        if settling.as_ref() != Some(&found) {
            settling = Some(found);
            continue;
        }
        settling = None;
        match found.clone().and_then(|contents| parse(&contents)) {
            Ok(new) => {
                value.store(Arc::new(new));
                tracing::info!(what, "read again, its files have changed");
            }
            Err(error) => tracing::error!(what, error, "its files have changed and cannot be used, the old ones stay"),
        }
        judged = found;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(contents: &[Vec<u8>]) -> Result<u32, String> {
        let text = String::from_utf8_lossy(&contents[0]);
        text.trim().parse().map_err(|error| format!("'{text}': {error}"))
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_value_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        assert!(Watched::start("number", vec![file.clone()], number).is_err(), "no file, no start");
        std::fs::write(&file, "1").unwrap();
        let watched = Watched::start("number", vec![file.clone()], number).unwrap();
        assert_eq!(*watched.get(), 1);
        let settle = || tokio::time::sleep(LOOK * 4);
        for (text, expected) in [("2", 2), ("many", 2), ("3", 3)] {
            std::fs::write(&file, text).unwrap();
            settle().await;
            assert_eq!(*watched.get(), expected, "after '{text}'");
        }
        std::fs::remove_file(&file).unwrap();
        settle().await;
        assert_eq!(*watched.get(), 3);
        std::fs::write(&file, "4").unwrap();
        settle().await;
        assert_eq!(*watched.get(), 4);
    }
}
