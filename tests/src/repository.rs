//! Model repositories for a test: models of the pack, copies with another `model.toml`, and `chaos`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use toml::{Table, Value};

use crate::weights::{Array, Weights};
use crate::{module, weights};

const CHAOS: &str = r#"
modality = "text"
engine = "builtin"
architecture = "chaos"
pipeline = "tensor"
inputs = [{ name = "INPUT0", datatype = "FP32", shape = [-1, 16] }]
outputs = [{ name = "OUTPUT0", datatype = "FP32", shape = [-1, 16] }]
"#;

const MODULE: &str = r#"
modality = "text"
engine = "torchscript"
pipeline = "tensor"
inputs = [{ name = "x", datatype = "INT64", shape = [-1, 1] }]
outputs = [{ name = "y", datatype = "FP32", shape = [-1, 4] }]
replicas = { device = "cpu" }
"#;

/// The file of a model's weights.
const WEIGHTS: &str = "model.safetensors";

/// Where the pack lies.
fn pack() -> PathBuf {
    let path =
        std::env::var_os("SENSORIUM_REPOSITORY").map_or_else(|| crate::samples::cache().join("models"), PathBuf::from);
    assert!(path.is_dir(), "there is no model repository at {}: `make setup` makes it", path.display());
    path
}

/// A repository that lives as long as this value.
pub struct Repository {
    folder: Option<TempDir>,
    path: PathBuf,
}

impl Repository {
    /// The whole pack, as it is.
    pub fn pack() -> Self {
        Self { folder: None, path: pack() }
    }

    /// An empty one.
    pub fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        Self { path: folder.path().to_owned(), folder: Some(folder) }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn own(&self) -> &Path {
        assert!(self.folder.is_some(), "the pack itself is not changed");
        &self.path
    }

    /// Models of the pack as they are.
    #[must_use]
    pub fn with(self, models: &[&str]) -> Self {
        for model in models {
            symlink(pack().join(model), self.own().join(model)).expect("a link to the model");
        }
        self
    }

    /// A copy of a model of the pack under another name, with keys of its `model.toml` set to TOML values.
    #[must_use]
    pub fn copy(self, model: &str, name: &str, settings: &[(&str, &str)]) -> Self {
        let source = pack().join(model);
        let text = fs::read_to_string(source.join("model.toml")).expect("model.toml of the pack");
        self.write(name, &text, settings);
        symlink(source.join("1"), self.path.join(name).join("1")).expect("a link to the version");
        self
    }

    /// A copy of a model of the pack under another name, whose files can each be replaced.
    #[must_use]
    pub fn copy_files(self, model: &str, name: &str) -> Self {
        let (source, target) = (pack().join(model), self.own().join(name).join("1"));
        let text = fs::read_to_string(source.join("model.toml")).expect("model.toml of the pack");
        self.write(name, &text, &[]);
        fs::create_dir(&target).expect("a folder");
        for file in fs::read_dir(source.join("1")).expect("the version's files") {
            let file = file.expect("a file");
            symlink(file.path(), target.join(file.file_name())).expect("a link");
        }
        self
    }

    /// A copy of a model of the pack whose weights break off.
    #[must_use]
    pub fn broken(self, model: &str, name: &str, settings: &[(&str, &str)]) -> Self {
        let (source, target) = (pack().join(model), self.own().join(name).join("1"));
        let text = fs::read_to_string(source.join("model.toml")).expect("model.toml of the pack");
        self.write(name, &text, settings);
        fs::create_dir(&target).expect("a folder");
        for file in fs::read_dir(source.join("1")).expect("the version's files") {
            let file = file.expect("a file");
            if file.file_name() == "model.safetensors" {
                let weights = fs::read(file.path()).expect("weights");
                fs::write(target.join(file.file_name()), &weights[..weights.len() / 2]).expect("half of them");
            } else {
                symlink(file.path(), target.join(file.file_name())).expect("a link");
            }
        }
        self
    }

    /// A copy of a model of the pack with keys of its `model.toml` set, and with other weights.
    #[must_use]
    pub fn reweighted(
        self,
        model: &str,
        name: &str,
        settings: &[(&str, &str)],
        change: impl FnOnce(&mut Weights),
    ) -> Self {
        let text = fs::read_to_string(pack().join(model).join("model.toml")).expect("model.toml of the pack");
        self.write(name, &text, settings);
        let (source, target) = (pack().join(model).join("1"), self.path.join(name).join("1"));
        fs::create_dir(&target).expect("a folder");
        for file in fs::read_dir(&source).expect("the version's files") {
            let file = file.expect("a file");
            symlink(file.path(), target.join(file.file_name())).expect("a link");
        }
        let mut weights = weights::read(&source.join(WEIGHTS));
        change(&mut weights);
        self.replace(name, WEIGHTS, |path| weights::write(path, &weights));
        self
    }

    /// A user's TorchScript, with keys of its `model.toml` set; `forward` is its source, from the arguments on.
    #[must_use]
    pub fn module(self, name: &str, settings: &[(&str, &str)], forward: &str) -> Self {
        self.write(name, MODULE, settings);
        let folder = self.path.join(name).join("1");
        fs::create_dir(&folder).expect("a folder");
        module::write(&folder.join("model.pt"), forward);
        self
    }

    /// Another content of a file of a model's version.
    #[must_use]
    pub fn file(self, name: &str, file: &str, content: &str) -> Self {
        self.replace(name, file, |path| fs::write(path, content).expect("the file is written"));
        self
    }

    fn replace(&self, name: &str, file: &str, write: impl FnOnce(&Path)) {
        let path = self.own().join(name).join("1").join(file);
        // never through a link into the pack
        fs::remove_file(&path).expect("the file goes");
        write(&path);
    }

    /// A copy of a model of the pack all of whose weights are NaN. A server may do without it.
    #[must_use]
    pub fn without_numbers(self, model: &str, name: &str) -> Self {
        self.reweighted(model, name, &[("required", "false")], |weights| weights.values_mut().for_each(Array::spoil))
    }

    /// A `chaos` model, with keys of its `model.toml` set to TOML values.
    #[must_use]
    pub fn chaos(self, name: &str, settings: &[(&str, &str)]) -> Self {
        self.write(name, CHAOS, settings);
        fs::create_dir(self.path.join(name).join("1")).expect("a folder");
        self
    }

    fn write(&self, name: &str, text: &str, settings: &[(&str, &str)]) {
        let mut table: Table = toml::from_str(text).expect("TOML");
        table.insert("name".to_owned(), Value::String(name.to_owned()));
        for (key, value) in settings {
            put(&mut table, key, value);
        }
        let folder = self.own().join(name);
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join("model.toml"), toml::to_string(&table).expect("TOML")).expect("model.toml");
    }

    /// The text of a model's `model.toml`, with keys set to TOML values.
    pub fn manifest(&self, name: &str, settings: &[(&str, &str)]) -> String {
        let text = fs::read_to_string(self.path.join(name).join("model.toml")).expect("model.toml");
        let mut table: Table = toml::from_str(&text).expect("TOML");
        for (key, value) in settings {
            put(&mut table, key, value);
        }
        toml::to_string(&table).expect("TOML")
    }
}

impl Default for Repository {
    fn default() -> Self {
        Self::new()
    }
}

fn put(table: &mut Table, key: &str, value: &str) {
    let mut parsed: Table = toml::from_str(&format!("value = {value}")).expect("a TOML value");
    let value = parsed.remove("value").expect("the value");
    let (sections, key) = key.rsplit_once('.').map_or((None, key), |(sections, key)| (Some(sections), key));
    let mut at = table;
    for section in sections.into_iter().flat_map(|sections| sections.split('.')) {
        let entry = at.entry(section).or_insert_with(|| Value::Table(Table::new()));
        at = entry.as_table_mut().expect("a section");
    }
    at.insert(key.to_owned(), value);
}
