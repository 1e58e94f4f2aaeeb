//! Where the items of a bulk job come from: a folder, a JSONL file, or the command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sensorium_proto::v1::part::Content;
use sensorium_proto::v1::{JobItem, Part};
use serde::Deserialize;
use walkdir::WalkDir;

use super::super::failure::Failure;

const TEXTS: [&str; 2] = ["txt", "md"];
const IMAGES: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];
const SOUNDS: [&str; 7] = ["wav", "flac", "mp3", "ogg", "oga", "aac", "m4a"];

/// An item whose contents are not read yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) text: Option<String>,
    pub(super) text_file: Option<PathBuf>,
    pub(super) image: Option<PathBuf>,
    pub(super) audio: Option<PathBuf>,
}

/// What a folder or a file holds.
#[derive(Default)]
pub(super) struct Found {
    pub(super) items: Vec<Source>,
    pub(super) skipped: Vec<Skipped>,
}

/// What is no item, though it stands among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Skipped {
    pub(super) name: String,
    pub(super) reason: String,
}

/// A line of JSONL; paths are relative to its file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    name: String,
    text: Option<String>,
    image: Option<PathBuf>,
    audio: Option<PathBuf>,
}

impl Source {
    /// Reads what it names; the error says why that cannot be sent.
    pub(super) async fn read(self) -> Result<JobItem, String> {
        let file = async |path: &Path| {
            let read = tokio::fs::read(path).await.map_err(|error| format!("{}: {error}", path.display()))?;
            if read.is_empty() { Err(format!("{}: empty", path.display())) } else { Ok(read) }
        };
        let mut contents = Vec::new();
        contents.extend(self.text.map(Content::Text));
        if let Some(path) = self.text_file {
            let text = String::from_utf8(file(&path).await?);
            let text = text.map_err(|error| format!("{}: {error}, expected UTF-8", path.display()))?;
            contents.push(Content::Text(text));
        }
        if let Some(path) = self.image {
            contents.push(Content::Image(file(&path).await?.into()));
        }
        if let Some(path) = self.audio {
            contents.push(Content::Audio(file(&path).await?.into()));
        }
        let parts = contents.into_iter().map(|content| Part { content: Some(content) }).collect();
        Ok(JobItem { name: self.name, parts })
    }
}

/// The items of a folder or a JSONL file, and what in it is none.
pub(super) fn of(path: &Path) -> Result<Found, Failure> {
    let found = if path.is_dir() { Ok(folder(path)) } else { lines(path) };
    let found = found.map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    if found.items.is_empty() {
        let expected = "expected pictures, clips or texts in it, or a JSON object a line";
        let first = found.skipped.first().map(|Skipped { name, reason }| format!("; {name}: {reason}"));
        let first = first.unwrap_or_default();
        return Err(Failure::Usage(format!("{}: nothing to sense, {expected}{first}", path.display())));
    }
    Ok(found)
}

/// Files that differ in their extension alone are one item: `cat.png`, `cat.wav` and `cat.txt`.
fn folder(root: &Path) -> Found {
    let mut items: BTreeMap<PathBuf, Source> = BTreeMap::new();
    let mut skipped = Vec::new();
    // two pictures of one name: nobody can say which is meant
    let mut twice: BTreeMap<PathBuf, String> = BTreeMap::new();
    for entry in WalkDir::new(root).follow_links(true).sort_by_file_name() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let name = error.path().unwrap_or(root).display().to_string();
                skipped.push(Skipped { name, reason: error.to_string() });
                continue;
            }
        };
        let path = entry.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase();
        let is = |known: &[&str]| known.contains(&extension.as_str());
        if !entry.file_type().is_file() || !(is(&TEXTS) || is(&IMAGES) || is(&SOUNDS)) {
            continue;
        }
        let relative = path.strip_prefix(root).unwrap_or(path).with_extension("");
        let name = relative.display().to_string();
        let item = items.entry(relative.clone()).or_insert_with(|| Source { name, ..Source::default() });
        let place = match () {
            () if is(&TEXTS) => &mut item.text_file,
            () if is(&IMAGES) => &mut item.image,
            () => &mut item.audio,
        };
        if let Some(other) = place.replace(path.to_owned()) {
            let reason = format!("two parts of one sense: {} and {}", other.display(), path.display());
            twice.entry(relative).or_insert(reason);
        }
    }
    for (relative, reason) in twice {
        items.remove(&relative);
        skipped.push(Skipped { name: relative.display().to_string(), reason });
    }
    Found { items: items.into_values().collect(), skipped }
}

fn lines(path: &Path) -> Result<Found, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut found = Found::default();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = number + 1;
        match item(number, line, folder) {
            Ok(item) => found.items.push(item),
            Err(reason) => found.skipped.push(Skipped { name: format!("{}, line {number}", path.display()), reason }),
        }
    }
    Ok(found)
}

fn item(number: usize, line: &str, folder: &Path) -> Result<Source, String> {
    let beside = |file: PathBuf| folder.join(file);
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if line.text.is_none() && line.image.is_none() && line.audio.is_none() {
        return Err("nothing to sense, expected text, image or audio".to_owned());
    }
    let name = if line.name.is_empty() { format!("line {number}") } else { line.name };
    let (image, audio) = (line.image.map(beside), line.audio.map(beside));
    if let Some(missing) = image.iter().chain(&audio).find(|file| !file.is_file()) {
        return Err(format!("{} is no file", missing.display()));
    }
    Ok(Source { name, text: line.text, text_file: None, image, audio })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_one_name_are_one_item() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["cat.png", "cat.TXT", "deep/dog.wav", "notes.pdf"] {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let told = || {
            let Ok(found) = of(folder.path()) else { panic!("there are items") };
            let items =
                found.items.iter().map(|item| (item.name.clone(), item.text_file.is_some(), item.audio.is_some()));
            (items.collect::<Vec<_>>(), found.skipped)
        };
        let dog = ("deep/dog".to_owned(), false, true);
        assert_eq!(told(), (vec![("cat".to_owned(), true, false), dog.clone()], Vec::new()));
        // what is wrong with one is no reason to leave out the others
        std::fs::write(folder.path().join("cat.jpg"), "x").unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("gone.png")).unwrap();
        let (items, mut skipped) = told();
        skipped.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!((items, skipped.len()), (vec![dog], 2));
        assert!(
            skipped.iter().any(|of| of.name == "cat" && of.reason.contains("two parts of one sense")),
            "{skipped:?}"
        );
        assert!(skipped.iter().any(|of| of.name.ends_with("gone.png")), "{skipped:?}");
    }

    #[test]
    fn lines_name_their_mistakes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("items.jsonl");
        let told = |text: &str| {
            std::fs::write(&path, text).unwrap();
            match of(&path) {
                Ok(found) => {
                    let items = found.items.into_iter().map(|item| item.name);
                    let skipped =
                        found.skipped.into_iter().map(|skipped| format!("{}: {}", skipped.name, skipped.reason));
                    items.chain(skipped).collect::<Vec<_>>().join("|")
                }
                Err(Failure::Usage(message)) => message,
                Err(_) => String::new(),
            }
        };
        assert_eq!(told("{\"text\": \"a\"}\n\n{\"name\": \"n\", \"text\": \"b\"}\n"), "line 1|n");
        let skipped = told("{\"text\": \"a\"}\n{\"image\": \"none.png\"}\n{\"text\": \"c\"");
        assert!(skipped.starts_with("line 1|"), "{skipped}");
        assert!(
            skipped.contains("line 2: ") && skipped.contains("none.png") && skipped.contains("line 3: "),
            "{skipped}"
        );
        assert!(told("{\"smell\": \"a\"}").contains("smell"));
        assert!(told("{\"name\": \"n\"}").contains("nothing to sense"));
        assert!(told("").contains("nothing to sense"));
    }

    #[tokio::test]
    async fn what_cannot_be_read_says_why() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes, word) in
            [("empty.txt", &b""[..], "empty"), ("latin.txt", b"caf\xe9", "UTF-8"), ("gone", b"", "")]
        {
            let path = folder.path().join(name);
            if !word.is_empty() {
                std::fs::write(&path, bytes).unwrap();
            }
            let source = Source { text_file: Some(path), ..Source::default() };
            let reason = source.read().await.unwrap_err();
            assert!(reason.contains(name) && reason.contains(word), "{reason}");
        }
    }
}
