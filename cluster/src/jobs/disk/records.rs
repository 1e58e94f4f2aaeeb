//! Records by key, and blobs by name.

use bytes::Bytes;
use redb::{Error as Fault, ReadableTable};

use super::super::{Record, Result};
use super::file::account;
use super::{BLOBS, Disk, RECORDS, now};

impl Disk {
    pub(in super::super) async fn create(&self, key: &str, value: Bytes) -> Result<bool> {
        let key = key.to_owned();
        self.change(move |change| {
            let mut records = change.open_table(RECORDS)?;
            if records.get(key.as_str())?.is_some() {
                return Ok(false);
            }
            records.insert(key.as_str(), (1, now(), &value[..]))?;
            account(change, value.len(), 0)?;
            Ok(true)
        })
        .await
    }

    pub(in super::super) async fn get(&self, key: &str) -> Result<Option<Record>> {
        let key = key.to_owned();
        self.read(move |read| {
            let found = read.open_table(RECORDS)?.get(key.as_str())?;
            Ok(found.map(|found| {
                let (revision, _, value) = found.value();
                Record { value: Bytes::copy_from_slice(value), revision }
            }))
        })
        .await
    }

    pub(in super::super) async fn update(&self, key: &str, value: Bytes, revision: u64) -> Result<bool> {
        let key = key.to_owned();
        self.change(move |change| {
            let mut records = change.open_table(RECORDS)?;
            let known = records.get(key.as_str())?.map(|known| (known.value().0, known.value().2.len()));
            let Some((_, before)) = known.filter(|(known, _)| *known == revision) else { return Ok(false) };
            records.insert(key.as_str(), (revision + 1, now(), &value[..]))?;
            account(change, value.len(), before)?;
            Ok(true)
        })
        .await
    }

    pub(in super::super) async fn remove(&self, key: &str) -> Result<()> {
        let key = key.to_owned();
        self.change(move |change| {
            let gone = change.open_table(RECORDS)?.remove(key.as_str())?.map_or(0, |gone| gone.value().2.len());
            account(change, 0, gone)
        })
        .await
    }

    pub(in super::super) async fn remove_below(&self, prefix: &str) -> Result<()> {
        let (from, to) = below(prefix);
        self.change(move |change| {
            let mut gone = 0;
            change.open_table(RECORDS)?.retain_in(from.as_str()..to.as_str(), |_, (_, _, value)| {
                gone += value.len();
                false
            })?;
            account(change, 0, gone)
        })
        .await
    }

    pub(in super::super) async fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let (from, to) = below(prefix);
        self.read(move |read| {
            let records = read.open_table(RECORDS)?;
            let keys = records.range(from.as_str()..to.as_str())?.map(|entry| Ok(entry?.0.value().to_owned()));
            keys.collect::<std::result::Result<_, Fault>>()
        })
        .await
    }

    pub(in super::super) async fn put_blob(&self, name: &str, value: Bytes) -> Result<()> {
        let name = name.to_owned();
        self.change(move |change| {
            let mut blobs = change.open_table(BLOBS)?;
            let before = blobs.insert(name.as_str(), (now(), &value[..]))?.map_or(0, |before| before.value().1.len());
            account(change, value.len(), before)
        })
        .await
    }

    pub(in super::super) async fn blob(&self, name: &str) -> Result<Option<Bytes>> {
        let name = name.to_owned();
        self.read(move |read| {
            let found = read.open_table(BLOBS)?.get(name.as_str())?;
            Ok(found.map(|found| Bytes::copy_from_slice(found.value().1)))
        })
        .await
    }

    pub(in super::super) async fn remove_blob(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.change(move |change| {
            let gone = change.open_table(BLOBS)?.remove(name.as_str())?.map_or(0, |gone| gone.value().1.len());
            account(change, 0, gone)
        })
        .await
    }

    pub(in super::super) async fn blobs(&self) -> Result<Vec<String>> {
        self.read(move |read| {
            let blobs = read.open_table(BLOBS)?;
            let names = blobs.iter()?.map(|entry| Ok(entry?.0.value().to_owned()));
            names.collect::<std::result::Result<_, Fault>>()
        })
        .await
    }
}

/// What keys below a prefix lie between: '/' comes right after '.'.
fn below(prefix: &str) -> (String, String) {
    (format!("{prefix}."), format!("{prefix}/"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::MANY;
    use super::*;

    #[tokio::test]
    async fn records_change_only_by_whoever_knows_them() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(&folder.path().join("jobs"), MANY).unwrap();
        assert!(disk.create("a.b", Bytes::from_static(b"1")).await.unwrap());
        assert!(!disk.create("a.b", Bytes::from_static(b"2")).await.unwrap());
        let record = disk.get("a.b").await.unwrap().unwrap();
        assert_eq!(record.value, "1");
        assert!(disk.update("a.b", Bytes::from_static(b"3"), record.revision).await.unwrap());
        assert!(!disk.update("a.b", Bytes::from_static(b"4"), record.revision).await.unwrap());
        for key in ["a.c", "ab.c", "a"] {
            disk.create(key, Bytes::new()).await.unwrap();
        }
        assert_eq!(disk.keys("a").await.unwrap(), ["a.b", "a.c"]);
        disk.remove("a.b").await.unwrap();
        assert!(disk.create("a.b", Bytes::new()).await.unwrap());
    }
}
