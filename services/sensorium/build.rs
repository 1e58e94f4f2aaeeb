//! Lets the binary find libtorch where the build found it, and load what drives GPUs where that is a part of it.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{libtorch}/lib");
        let cuda = format!("{libtorch}/lib/libtorch_cuda.so");
        if Path::new(&cuda).exists() {
            // nothing in it is called by name, so a linker leaves it out: it tells libtorch of itself when it is loaded
            println!("cargo:rustc-link-arg-bins=-Wl,--push-state,--no-as-needed,{cuda},--pop-state");
        }
    }
}
