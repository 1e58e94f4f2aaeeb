//! TorchScript as a user would have saved it, from its source: there is no compiler for it here, but the archive holds
//! nothing else than the source and the pickled attributes.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use zip::CompressionMethod;
use zip::write::{FileOptions, ZipWriter};

/// The pickle of an object of class `__torch__.Served` with `training = False`: PROTO 2, GLOBAL, EMPTY_TUPLE, NEWOBJ, a
/// dictionary of one key, BUILD, STOP.
const OBJECT: &[u8] = b"\x80\x02c__torch__\nServed\nq\x00)\x81q\x01}q\x02X\x08\x00\x00\x00trainingq\x03\x89sb.";
/// The pickle of an empty tuple: no constants.
const NOTHING: &[u8] = b"\x80\x02).";

/// Writes a module whose `forward` has this source, from its arguments on, such as `x: Tensor) -> Tensor:\n    return x`.
pub(crate) fn write(path: &Path, forward: &str) {
    let code = format!(
        "class Served(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n  \
         def forward(self: __torch__.Served,\n    {forward}\n"
    );
    let mut archive = ZipWriter::new(File::create(path).expect("model.pt"));
    let stored = FileOptions::default().compression_method(CompressionMethod::Stored);
    let files: [(&str, &[u8]); 4] = [
        ("model/data.pkl", OBJECT),
        ("model/code/__torch__.py", code.as_bytes()),
        ("model/constants.pkl", NOTHING),
        ("model/version", b"3\n"),
    ];
    for (name, content) in files {
        archive.start_file(name, stored).expect("a file in the archive");
        archive.write_all(content).expect("its content");
    }
    archive.finish().expect("the archive");
}
