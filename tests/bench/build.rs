//! Compiles the shim for Boost.Interprocess where its headers are installed, and leaves it out where they are not: the
//! configuration `boost` tells the program which.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(boost)");
    println!("cargo::rerun-if-changed=shim/boost.cpp");
    // Installing the headers later must bring Boost in.
    println!("cargo::rerun-if-changed=/usr/include/boost/interprocess/managed_shared_memory.hpp");
    let mut shim = cc::Build::new();
    shim.cpp(true).std("c++17").file("shim/boost.cpp").opt_level(3).define("NDEBUG", None).warnings(false);
    match shim.try_compile("shmheap_bench_boost") {
        Ok(()) => println!("cargo::rustc-cfg=boost"),
        Err(_) => println!("cargo::warning=Boost.Interprocess is left out (apt-get install g++ libboost-dev)"),
    }
}
