//! A POSIX shared memory object, opened under its key and kept an eye on.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use sensorium_actors::error::{Error, Result};

/// Where Linux keeps POSIX shared memory objects (shm_overview(7)).
const FOLDER: &str = "/dev/shm";
/// NAME_MAX of Linux: a longer key names nothing.
const LONGEST_KEY: usize = 255;

/// The device and the inode: an object that was made again under the same key has others. Ours stays open, so that its
/// inode cannot be given to another one meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity(u64, u64);

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

/// An object that a client has made.
pub(super) struct Object {
    path: PathBuf,
    file: File,
    identity: Identity,
}

impl Object {
    /// Opens the object of this key.
    ///
    /// # Errors
    /// `InvalidArgument` for a key that is no plain name, that names nothing, or that names a link, a folder, a device or
    /// a pipe: only what lies in the folder itself, and is memory, is a client's to lend.
    pub(super) fn open(key: &str) -> Result<Self> {
        let bad = |message: String| Err(Error::invalid("key", message));
        if key.len() > LONGEST_KEY {
            return bad(format!("{} bytes, expected at most {LONGEST_KEY}", key.len()));
        }
        let plain = key.strip_prefix('/').unwrap_or(key);
        if plain.is_empty() || plain == "." || plain == ".." || plain.contains(['/', '\0']) {
            return bad(format!("'{key}', expected the name of a POSIX shared memory object"));
        }
        let path = Path::new(FOLDER).join(plain);
        // a pipe would hold up whoever opens it, hence O_NONBLOCK
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = match OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(&path) {
            Ok(file) => file,
            Err(error) => return bad(format!("cannot open shared memory '{key}': {error}")),
        };
        let metadata = file.metadata().map_err(|error| Error::Internal(format!("'{key}': {error}")))?;
        if !metadata.is_file() {
            return bad(format!("cannot open shared memory '{key}': it is not a regular file"));
        }
        Ok(Self { path, identity: Identity::of(&metadata), file })
    }

    /// Which object it is.
    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Its bytes, if its key still names it.
    ///
    /// # Errors
    /// Why the key no longer does, for people.
    pub(super) fn size(&self) -> Result<u64, String> {
        match std::fs::symlink_metadata(&self.path) {
            Ok(now) if Identity::of(&now) == self.identity => Ok(now.len()),
            Ok(_) => Err("its object was removed and made again, register the new one".to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err("its object was removed, register a new one".to_owned())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Fills `data` with the bytes from `at` on.
    pub(super) fn read(&self, data: &mut [u8], at: u64) -> std::io::Result<()> {
        self.file.read_exact_at(data, at)
    }

    /// Writes `data` from `at` on.
    pub(super) fn write(&self, data: &[u8], at: u64) -> std::io::Result<()> {
        self.file.write_all_at(data, at)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn refused(key: &str, word: &str) {
        let error = Object::open(key).err().unwrap_or_else(|| panic!("'{key}' was opened"));
        assert!(error.to_string().contains(word), "{error}");
    }

    /// A name that no other test has.
    fn key(about: &str) -> (String, PathBuf) {
        let key = format!("sensorium-{about}-{}", std::process::id());
        let path = Path::new(FOLDER).join(&key);
        (key, path)
    }

    #[test]
    fn only_memory_in_the_folder_itself_is_opened() {
        for bad in ["", "/", "..", "/..", "a/b", "/../etc/passwd", "a\0b"] {
            refused(bad, "expected the name");
        }
        refused(&"k".repeat(256), "256 bytes");
        refused("sensorium-there-is-no-such-object", "cannot open");
        let (link, at) = key("link");
        symlink("/etc/hostname", &at).unwrap();
        refused(&link, "cannot open");
        std::fs::remove_file(&at).unwrap();
        let (pipe, at) = key("pipe");
        nix::unistd::mkfifo(&at, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused(&pipe, "not a regular file");
        std::fs::remove_file(&at).unwrap();
        let (folder, at) = key("folder");
        std::fs::create_dir(&at).unwrap();
        refused(&folder, "cannot open");
        std::fs::remove_dir(&at).unwrap();
    }

    #[test]
    fn an_object_that_is_made_again_is_another_one() {
        let (key, at) = key("again");
        std::fs::write(&at, [1; 8]).unwrap();
        let object = Object::open(&key).unwrap();
        assert_eq!(object.size(), Ok(8));
        std::fs::remove_file(&at).unwrap();
        assert!(object.size().unwrap_err().contains("removed"));
        std::fs::write(&at, [2; 8]).unwrap();
        assert!(object.size().unwrap_err().contains("made again"));
        let again = Object::open(&key).unwrap();
        assert_eq!(again.size(), Ok(8));
        assert_ne!(again.identity(), object.identity());
        std::fs::remove_file(&at).unwrap();
    }
}
