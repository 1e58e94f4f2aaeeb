//! The file itself: changes, reads, and what happens when the disk is full.
//!
//! After a failed write redb refuses everything until the file has been opened anew, which is what this does. While
//! there is trouble a small change is tried once a second; everybody else's is refused at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::{Mutex, RwLock};
use redb::{
    Database, DatabaseError, Error as Fault, ReadTransaction, ReadableDatabase, ReadableTable, WriteTransaction,
};
use tokio::time::Instant;

use super::super::{Error, Result};
use super::{BLOBS, DEAD, FLOWS, IDS, MESSAGES, PLACES, RECORDS, USED};
use crate::health::Health;

/// Bytes of the file that are held in memory. By itself it would take a GiB; the system keeps what is read often.
const CACHE: usize = 16 << 20;
/// The only key of [`USED`].
const ALL: &str = "all";

/// Why nothing can be written at the moment.
struct Trouble {
    since: Instant,
    message: String,
}

pub(super) struct File {
    path: PathBuf,
    /// Nothing while it cannot be opened.
    database: RwLock<Option<Database>>,
    trouble: Mutex<Option<Trouble>>,
    used: AtomicU64,
}

fn create(path: &Path) -> std::result::Result<Database, DatabaseError> {
    Database::builder().set_cache_size(CACHE).create(path)
}

/// What redb calls an error of the disk, and everything after one.
fn is_broken(fault: &Fault) -> bool {
    matches!(fault, Fault::Io(_) | Fault::PreviousIo | Fault::DatabaseClosed | Fault::TransactionPoisoned)
}

impl File {
    pub(super) fn open(path: &Path) -> std::result::Result<Arc<Self>, Fault> {
        let file = Self {
            path: path.to_owned(),
            database: RwLock::new(Some(create(path)?)),
            trouble: Mutex::default(),
            used: AtomicU64::new(0),
        };
        file.attempt(|change| {
            change.open_table(RECORDS)?;
            change.open_table(BLOBS)?;
            change.open_table(MESSAGES)?;
            change.open_table(FLOWS)?;
            change.open_table(PLACES)?;
            change.open_table(IDS)?;
            change.open_table(DEAD)?;
            if change.open_table(USED)?.get(ALL)?.is_none() {
                count(change)?;
            }
            Ok(())
        })?;
        Ok(Arc::new(file))
    }

    pub(super) fn is_in_trouble(&self) -> bool {
        self.trouble.lock().is_some()
    }

    /// Bytes of everything that is kept.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    pub(super) fn health(&self) -> Health {
        match &*self.trouble.lock() {
            None => Health::Embedded,
            Some(Trouble { since, .. }) => Health::Full { since: *since },
        }
    }

    pub(super) fn trouble(&self) -> String {
        self.trouble.lock().as_ref().map(|trouble| trouble.message.clone()).unwrap_or_default()
    }

    /// One change, on disk when it returns. Blocks.
    pub(super) fn change<T>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        if let Some(trouble) = &*self.trouble.lock() {
            return Err(Error::NoRoom(trouble.message.clone()));
        }
        self.attempt(change).map_err(|fault| self.failed(&fault))
    }

    /// Blocks.
    pub(super) fn read<T>(&self, read: impl FnOnce(&ReadTransaction) -> std::result::Result<T, Fault>) -> Result<T> {
        let found = (|| {
            let database = self.database.read();
            read(&database.as_ref().ok_or(Fault::DatabaseClosed)?.begin_read()?)
        })();
        found.map_err(|fault: Fault| self.failed(&fault))
    }

    fn attempt<T>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> std::result::Result<T, Fault>,
    ) -> std::result::Result<T, Fault> {
        let database = self.database.read();
        let transaction = database.as_ref().ok_or(Fault::DatabaseClosed)?.begin_write()?;
        let done = change(&transaction)?;
        let used = transaction.open_table(USED)?.get(ALL)?.map_or(0, |used| used.value());
        transaction.commit()?;
        self.used.store(used, Relaxed);
        Ok(done)
    }

    /// Takes note of a failure; the file is opened anew after one of the disk.
    fn failed(&self, fault: &Fault) -> Error {
        let message = format!("the file of jobs ({}): {fault}", self.path.display());
        if !is_broken(fault) {
            return Error::Unavailable(message);
        }
        {
            let mut trouble = self.trouble.lock();
            if trouble.is_none() {
                tracing::error!(path = %self.path.display(), error = %fault, "the file of jobs cannot be written, jobs wait");
                *trouble = Some(Trouble { since: Instant::now(), message: message.clone() });
            }
        }
        Error::NoRoom(message)
    }

    /// Opens the file anew, and tries to write. Blocks. A probe that fails is more of the same trouble.
    pub(super) fn probe(&self) {
        {
            let mut database = self.database.write();
            // closed first: its lock is of one opener
            *database = None;
            match create(&self.path) {
                Ok(opened) => *database = Some(opened),
                Err(error) => {
                    tracing::debug!(%error, "the file of jobs cannot be opened");
                    return;
                }
            }
        }
        let written = self.attempt(|change| {
            // as large as what comes next, or the probe would succeed on the last bytes of a disk
            let ballast = vec![0; 1 << 20];
            change.open_table(BLOBS)?.insert("probe", (0, &ballast[..]))?;
            Ok(())
        });
        let removed = written.and_then(|()| {
            self.attempt(|change| {
                change.open_table(BLOBS)?.remove("probe")?;
                Ok(())
            })
        });
        match removed {
            Ok(()) => {
                tracing::info!(path = %self.path.display(), "the file of jobs can be written again");
                *self.trouble.lock() = None;
            }
            Err(error) => tracing::debug!(%error, "the file of jobs cannot be written"),
        }
    }
}

/// Takes note that so many bytes came, and so many went, within the change.
pub(super) fn account(change: &WriteTransaction, came: usize, went: usize) -> std::result::Result<(), Fault> {
    let mut table = change.open_table(USED)?;
    let used = table.get(ALL)?.map_or(0, |used| used.value());
    table.insert(ALL, used.saturating_add(came as u64).saturating_sub(went as u64))?;
    Ok(())
}

/// Counts what a file of an earlier build holds.
fn count(change: &WriteTransaction) -> std::result::Result<(), Fault> {
    let mut used = 0;
    for entry in change.open_table(RECORDS)?.iter()? {
        used += entry?.1.value().2.len();
    }
    for entry in change.open_table(BLOBS)?.iter()? {
        used += entry?.1.value().1.len();
    }
    for entry in change.open_table(MESSAGES)?.iter()? {
        used += entry?.1.value().4.len();
    }
    for entry in change.open_table(DEAD)?.iter()? {
        used += entry?.1.value().1.len();
    }
    change.open_table(USED)?.insert(ALL, used as u64)?;
    Ok(())
}
