//! Lets this crate's tests and examples find libtorch where the build found it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_LIB");
    if let Ok(libtorch) = std::env::var("LIBTORCH_LIB").or_else(|_| std::env::var("LIBTORCH")) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
        // the very libgomp that libtorch uses, for `team`
        println!("cargo:rustc-link-search=native={libtorch}/lib");
        println!("cargo:rustc-link-lib=dylib:+verbatim=libgomp.so.1");
        let cuda = format!("{libtorch}/lib/libtorch_cuda.so");
        if std::path::Path::new(&cuda).exists() {
            // nothing in it is called by name, so a linker leaves it out: it tells libtorch of itself when it is loaded
            println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed,{cuda},--pop-state");
        }
    }
}
