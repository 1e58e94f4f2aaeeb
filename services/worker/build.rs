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
    }
}
