//! Where the items of a bulk job come from: a folder, a JSONL file, or the command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sensorium_proto::v1::part::Content;
use sensorium_proto::v1::{JobItem, Part};
use serde::Deserialize;
use walkdir::WalkDir;

use super::super::connect::Failure;

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
    /// Reads what it names.
    pub(super) async fn read(self) -> Result<JobItem, Failure> {
        let file = async |path: PathBuf| {
            let read = tokio::fs::read(&path).await;
            read.map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
        };
        let mut contents = Vec::new();
        contents.extend(self.text.map(Content::Text));
        if let Some(path) = self.text_file {
            let text = String::from_utf8(file(path.clone()).await?);
            let text = text.map_err(|error| Failure::Usage(format!("{}: {error}, expected UTF-8", path.display())))?;
            contents.push(Content::Text(text));
        }
        if let Some(path) = self.image {
            contents.push(Content::Image(file(path).await?.into()));
        }
        if let Some(path) = self.audio {
            contents.push(Content::Audio(file(path).await?.into()));
        }
        let parts = contents.into_iter().map(|content| Part { content: Some(content) }).collect();
        Ok(JobItem { name: self.name, parts })
    }
}

/// The items of a folder or a JSONL file.
pub(super) fn of(path: &Path) -> Result<Vec<Source>, Failure> {
    let found = if path.is_dir() { folder(path) } else { lines(path) };
    let found = found.map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    if found.is_empty() {
        let expected = "expected pictures, clips or texts in it, or a JSON object a line";
        return Err(Failure::Usage(format!("{}: nothing to sense, {expected}", path.display())));
    }
    Ok(found)
}

/// Files that differ in their extension alone are one item: `cat.png`, `cat.wav` and `cat.txt`.
fn folder(root: &Path) -> Result<Vec<Source>, String> {
    let mut items: BTreeMap<PathBuf, Source> = BTreeMap::new();
    for entry in WalkDir::new(root).follow_links(true) {
        let entry = entry.map_err(|error| error.to_string())?;
        let path = entry.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase();
        let is = |known: &[&str]| known.contains(&extension.as_str());
        if !entry.file_type().is_file() || !(is(&TEXTS) || is(&IMAGES) || is(&SOUNDS)) {
            continue;
        }
        let relative = path.strip_prefix(root).unwrap_or(path).with_extension("");
        let name = relative.display().to_string();
        let item = items.entry(relative).or_insert_with(|| Source { name: name.clone(), ..Source::default() });
        let place = match () {
            () if is(&TEXTS) => &mut item.text_file,
            () if is(&IMAGES) => &mut item.image,
            () => &mut item.audio,
        };
        if let Some(other) = place.replace(path.to_owned()) {
            return Err(format!("'{name}' has two parts of one sense: {} and {}", other.display(), path.display()));
        }
    }
    Ok(items.into_values().collect())
}

fn lines(path: &Path) -> Result<Vec<Source>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let beside = |file: PathBuf| folder.join(file);
    let mut items = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = number + 1;
        let line: Line = serde_json::from_str(line).map_err(|error| format!("line {number}: {error}"))?;
        if line.text.is_none() && line.image.is_none() && line.audio.is_none() {
            return Err(format!("line {number}: nothing to sense, expected text, image or audio"));
        }
        let name = if line.name.is_empty() { format!("line {number}") } else { line.name };
        let (image, audio) = (line.image.map(beside), line.audio.map(beside));
        if let Some(missing) = image.iter().chain(&audio).find(|file| !file.is_file()) {
            return Err(format!("line {number}: {} is no file", missing.display()));
        }
        items.push(Source { name, text: line.text, text_file: None, image, audio });
    }
    Ok(items)
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
        let found = of(folder.path()).ok().unwrap();
        let told: Vec<_> =
            found.iter().map(|item| (item.name.as_str(), item.text_file.is_some(), item.audio.is_some())).collect();
        assert_eq!(told, [("cat", true, false), ("deep/dog", false, true)]);
        std::fs::write(folder.path().join("cat.jpg"), "x").unwrap();
        let Err(Failure::Usage(message)) = of(folder.path()) else { panic!("two pictures of one cat") };
        assert!(message.contains("two parts of one sense"), "{message}");
    }

    #[test]
    fn lines_name_their_mistakes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("items.jsonl");
        let told = |text: &str| {
            std::fs::write(&path, text).unwrap();
            match of(&path) {
                Ok(items) => items.into_iter().map(|item| item.name).collect::<Vec<_>>().join("|"),
                Err(Failure::Usage(message)) => message,
                Err(_) => String::new(),
            }
        };
        assert_eq!(told("{\"text\": \"a\"}\n\n{\"name\": \"n\", \"text\": \"b\"}\n"), "line 1|n");
        assert!(told("{\"text\": \"a\"}\n{\"image\": \"none.png\"}").contains("line 2"));
        assert!(told("{\"smell\": \"a\"}").contains("smell"));
        assert!(told("{\"name\": \"n\"}").contains("nothing to sense"));
        assert!(told("").contains("nothing to sense"));
    }
}
